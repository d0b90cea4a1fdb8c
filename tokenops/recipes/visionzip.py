"""VisionZip: the tokens the vision tower looks at, and a few that sum up the rest."""

from __future__ import annotations

from tokenops.budget import Keep, check_keep
from tokenops.errors import TokenOpsError
from tokenops.pipeline import Pipeline
from tokenops.registry import register
from tokenops.selectors import TopK
from tokenops.selectors.mergers import Contextual
from tokenops.selectors.scorers import cls_attention, received_attention
from tokenops.stages import Merge


def _sample() -> Pipeline:
    return visionzip(0.5)


@register("recipe", paper="arXiv:2412.04467", sample=_sample)
def visionzip(keep: Keep, *, contextual: float = 10 / 64, cls: bool = True) -> Pipeline:
    """Keep the most attended tokens of each image and merge the others into contextual ones.

    Args:
        keep: tokens of an image that remain, dominant and contextual ones together: ratio or count.
        contextual: the share of contextual ones; 10 of 64, 20 of 128 and 30 of 192 in the paper. 0 prunes.
        cls: whether the vision tower has a CLS token. With one (CLIP), its attention says what is dominant;
            without (SigLIP, Qwen), the attention a token receives from all others.

    Raises:
        TokenOpsError: bad keep, or contextual not in [0, 1).

    >>> visionzip(64).stages["after_projector"]
    Merge(TopK(cls_attention, keep=54), Contextual(keep=64), scope='image')

    Reference: VisionZip (arXiv:2412.04467) §3.2, §3.3 and its released code. Deviations: it acts after the
    projector, on the attention and keys of the block whose output the projector reads; a contextual token is
    the mean of its group, where the code adds the mean of the others to the target; tokens stay in the order
    of the image, the crops of an image share one budget, and the CLS token itself is not added.
    """
    keep = check_keep(keep, who="visionzip")
    if isinstance(contextual, bool) or not isinstance(contextual, int | float) or not 0 <= contextual < 1:
        raise TokenOpsError("visionzip", "contextual as a share in [0, 1)", repr(contextual))
    if isinstance(keep, int):
        dominant: Keep = max(1, keep - round(keep * contextual))
    else:
        dominant = keep * (1 - contextual)
    scorer = cls_attention if cls else received_attention
    return Pipeline(after_projector=Merge(TopK(scorer, dominant), Contextual(keep)))
