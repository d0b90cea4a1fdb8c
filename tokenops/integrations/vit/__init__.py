"""Inside the vision transformers of timm, which is never imported here: a model brings its classes along."""

from tokenops.integrations.vit.attaching import VitHandle, attach_vit, attached_vit
from tokenops.integrations.vit.parts import is_timm

__all__ = ["VitHandle", "attach_vit", "attached_vit", "is_timm"]
