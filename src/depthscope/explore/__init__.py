"""The explorer: one page in the browser on which a prompt is read, cut up and looked into. Served on this machine only.

A module per room makes plain data and escaped HTML from the model's own run; `page` and `serve` alone know gradio.
"""

import os

# Before gradio is imported, which reads it then: nothing of what is looked at here leaves the machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
