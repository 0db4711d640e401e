"""The explorer: one page in the browser to analyse a prompt: lens, edits, heads, neurons and runs. Served locally only.

A module per tab produces plain data and escaped HTML from the baseline run; only `page` and `serve` depend on gradio.
"""

import os

# gradio reads this when imported, so it must be set before: no data leaves the machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
