"""How the suites' networks are trained."""

from __future__ import annotations

from dataclasses import replace

from gkp.attacks import Attack
from gkp.train.recipe import PAPER

PAPER_RECIPE = PAPER
# What the suites of 300 epochs train with; the paper trained in float32 (docs/differences.md).
LONG_RECIPE = replace(PAPER, precision="bfloat16")
SHORT_RECIPE = replace(PAPER, epochs=4, batch_size=128, lr=0.02, schedule="onecycle", precision="bfloat16")
# He et al. 2016, section 4.2, for networks without a public checkpoint; cosine instead of two drops.
SCRATCH_RECIPE = replace(LONG_RECIPE, epochs=200, batch_size=128, lr=0.1, schedule="cosine", nesterov=True)
MIDDLE_EPOCHS = 57  # 19 at each of the paper's learning rates
SELECTION_EPOCHS = 6  # two at each of the paper's three learning rates
# One step of 1.25 eps from a random point, the cheapest that trains robust networks (Wong et al. 2020).
ONE_STEP = Attack("pgd", eps=8 / 255, step=10 / 255, start="random")
ADVERSARIAL_RECIPE = replace(SHORT_RECIPE, epochs=6, lr=0.05, adversarial=ONE_STEP)
# No more passes than SHORT_RECIPE: an attacked batch takes up to two. eps: undefended networks differ there.
GENTLE = Attack("pgd", eps=0.5 / 255, step=0.625 / 255, start="random")
GENTLE_RECIPE = replace(SHORT_RECIPE, epochs=SHORT_RECIPE.epochs // 2, adversarial=GENTLE)
# The penalty costs a second pass. Its strength: of 1e-5, 1e-4 and 1e-3 the largest with which a dozen steps
# on CIFAR-10 left as many of 200 validation images right as without. Gradients of the digits' networks are so
# much smaller that 0.03, which does them no harm, diverges here.
PENALTY_RECIPE = replace(SHORT_RECIPE, epochs=SHORT_RECIPE.epochs // 2, gradient_penalty=1e-4)
# A teacher's forward pass costs a third. Share and temperature: of 0.5 at 4, 0.9 at 4 and 0.9 at 1 those with
# the most of 300 validation images of the digits right, without attack.
DISTILLED_RECIPE = replace(SHORT_RECIPE, epochs=3 * SHORT_RECIPE.epochs // 4, distillation=0.9)
# No flips: a mirrored digit is another digit or none.
DIGITS_BASELINE = replace(PAPER, epochs=12, batch_size=32, lr=0.1, schedule="onecycle", augment="crop")
DIGITS_RECIPE = replace(DIGITS_BASELINE, epochs=2, lr=0.03)
