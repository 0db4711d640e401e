"""The explorer: one page in the browser to analyse a prompt: lens, edits, heads, neurons and runs. Served locally only.

A module per tab produces plain data and escaped HTML from the baseline run; only `page` and `serve` depend on gradio. Every
request passes `gate` (who may ask what) and `open_pages` (how much at once) first.
"""

import os

# gradio reads these when imported or when a page is built, so they must be set before. No data leaves the machine; and no
# statistics are kept, for which gradio would build a table of up to 10,000 events after every event.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(10**12)
