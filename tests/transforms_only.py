"""A pytest plugin: torchvision's transforms beside a PyTorch that its wheel was not built for.

On PyPI torchvision is built for PyTorch with CUDA alone. Without that its own operators cannot be loaded, all of them
for detection, and it is not imported without them. Declared here they are there, and compute nothing; nobody asks them.
"""

import torch

OPERATORS = (
    *("nms", "qnms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool"),
    *("_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward"),
)

DECLARED = torch.library.Library("torchvision", "DEF")
for operator in OPERATORS:
    DECLARED.define(f"{operator}(Tensor _) -> Tensor")
