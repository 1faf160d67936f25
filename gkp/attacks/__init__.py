"""How networks are attacked: functions of pixels, and what one attack left of one network."""

from gkp.attacks.description import KINDS, Attack, length_text
from gkp.attacks.linf import LABELS, check_inputs, fgsm, frozen, pgd

__all__ = ["KINDS", "LABELS", "Attack", "check_inputs", "fgsm", "frozen", "length_text", "pgd"]
