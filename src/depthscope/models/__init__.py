"""Models: loading, replay of their blocks and unembedding, and the checks that replay is the model itself.

The one place that knows transformers' classes.
"""

import logging

# transformers imports torchao where it is installed, for any model. That says which of its libraries this processor cannot use.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
