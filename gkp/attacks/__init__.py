"""How networks are attacked: functions of pixels, and what one attack left of one network."""

from gkp.attacks.linf import KINDS, LABELS, Attack, check_inputs, fgsm, frozen, length_text, pgd

__all__ = ["KINDS", "LABELS", "Attack", "check_inputs", "fgsm", "frozen", "length_text", "pgd"]
