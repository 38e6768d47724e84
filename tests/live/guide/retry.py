# Python: Exponential backoff retry with Groq
import time, random
from groq import Groq, APIStatusError

def retry_with_backoff(func, max_retries=3, base_delay=0.5):
    for attempt in range(max_retries):
        try:
            return func()
        except APIStatusError as e:
            if e.status_code == 429: # Rate limit
                delay = base_delay * (2 ** attempt) + random.uniform(0, 0.1)
                time.sleep(delay)
                continue
            raise # Re-raise non-retryable errors

    raise Exception("Max retries exceeded")

# Usage
response = retry_with_backoff(
    lambda: client.chat.completions.create(...)
)
