namespace headrace { const char* version() { return "0"; } }
