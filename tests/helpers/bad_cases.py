"""What should not be given to the command line: (arguments, what the sentence names[, environment]).

The files that are spoken of are those of `bad_inputs.make_place`.
"""


def pairs(text: str) -> dict[str, str]:
    """Lines "name | what is said of it" as a dictionary."""
    lines = (line.partition(" | ") for line in text.strip().splitlines())
    return {name.strip(): said.strip() for name, _, said in lines}


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NET = ("--model", "net.safetensors")
OUT = ("--output", "x.safetensors")
PRUNE = ("prune", *NET, *OUT)
METHOD = ("--suite", "method")
LONG = "n" * 300 + ".safetensors"

NO_WHOLE = ("", " ", "9" * 40, *words("0 -5 nan inf 1e400 2.5 2.0 1_0 ten \u0663 0x10 1,000"))
NO_TIME = ("", " ", "10 min", *words("0 -5 -0.0 nan inf -inf 1e400 1e300 soon 1_0 1,5"))
NO_SUITE = ("", " ", "digits\n", "x" * 5000, *words("cifar11 Digits ../digits / * \u00e9t\u00e9 --"))
NO_METHOD = ("", " ", "sr gkp", "m" * 3000, *words("l3 SR-GKP srgkp gkp.prune"))
NO_DATASET = ("", "cifar10 ", *words("nope CIFAR10 cifar mnist"))
NO_DEVICE = ("", " ", *words("gpu CPU tpu meta cuda: cuda:-1 cuda:x cpu:1 cuda:999"))

NO_NETWORK = {"": "''", " ": "' '", LONG: "shorter name"} | pairs("""
resnet21 | did you mean resnet
ResNet20 | did you mean resnet20
resn\u00e9t20 | did you mean resnet20
torchvision: | torchvision
torchvision:resnet19 | resnet19
cifar10-resnet20-short/nope | manifest.json
../resnet20 | ../resnet20
/ | '/'
. | '.'
folder | 'folder'
notes.txt | notes.txt
evil.pt | evil.pt
missing.pt | missing.pt
missing.safetensors | there is no file missing.safetensors
notes.txt/x.safetensors | notes.txt/x.safetensors
folder.safetensors | is a folder
pipe.safetensors | is a named pipe
socket.safetensors | is a socket
dangling.safetensors | there is no file dangling.safetensors
loop.safetensors | loop.safetensors
format.safetensors | format 99
bare.safetensors | bare.safetensors
nan.safetensors | no finite numbers in layer1.0.conv1.weight
infinite.safetensors | no finite numbers in bn1.running_var
flowers.safetensors | 'flowers'
hundred.safetensors | 10 classes
""")
for damaged in words("empty truncated header flipped text huge evil foreign json list"):
    NO_NETWORK[f"{damaged}.safetensors"] = f"{damaged}.safetensors"

NO_OUTPUT = {"": ".safetensors", " ": ".safetensors", LONG: "shorter name"} | pairs("""
x | .safetensors
x.pt | x.pt
x.safetensors.txt | .safetensors
.safetensors | .safetensors
X.SAFETENSORS | X.SAFETENSORS
folder | folder
folder.safetensors | a folder
missing/x.safetensors | missing
notes.txt/x.safetensors | notes.txt
net.safetensors | give another
link.safetensors | give another
dangling.safetensors | unmounted
loop.safetensors | loop
pipe.safetensors | a named pipe
socket.safetensors | a socket
""")

# Options of a method of `prune`; what is named is what stands before the "=".
NO_OPTION = pairs(f"""
sr-gkp | x =1 alpha= 2x=1 alfa=1 alpha=abc alpha=nan alpha=1e400 alpha=true alpha=-3 snapshots=net data=x
sr-gkp  | beam_width=0 beam_width=1.5 beam_width=two check_step=0 neighbours=-1 decision=maybe execution=quick
sr-gkp   | indivisible=maybe seed=-1 seed={"9" * 20} variant=cubed outer_in_beam=1 beta=fast strategy=luck
l1 | images=5
random | seed=x
bn-gamma | minimum=2 minimum=-1 minimum=nan
hrank | images=0 images=-5 images=1301 images=1e3 batch_size=0 seed=0.5
thinet | locations=0 rescale=yes
taylor | minimum=7 images=many
sfp --epochs 1 | share=0 share=2
slimming --epochs 1 | sparsity=-1
""")

NO_WEIGHTS = pairs("""
missing | none.safetensors
damaged | another SHA-256
outside | outside of checkpoints
""")

NO_RECORD = pairs("""
object | version
nan | NaN
version | version 99
stem | another
config | config
checkpoints | checkpoints
folder | a folder
pipe | a named pipe
no-label | label
no-cost | cost
no-pruning | pruning
no-config | config
no-hash | hash
no-suite | suite
""") | dict.fromkeys(words("text empty bytes list number deep"), "results/method")

NO_PLUGIN = {"": ""} | pairs("""
missing-file.py | missing-file.py
zero.py | zero.py failed in line 2: ZeroDivisionError
syntax.py | syntax.py, line 1
exits.py | exits.py failed in line 2
value.py | value.py failed in line 1
lacks.py | no_such_package
missing.py | missing.py failed in line 1
deep.py | deep.py failed
taken.py | taken.py failed in line 2
package.py | package.py
pipe.py | pipe.py
nulls.py | nulls.py
latin.py | latin.py
folder | folder
notes.txt | notes.txt
""")


def numbers() -> list[tuple]:
    whole = [(PRUNE, "--groups"), (PRUNE, "--epochs"), (("evaluate", *NET), "--images")]
    whole += [(("run", *METHOD), "--jobs")]
    cases = [((*base, option, value), (option,)) for base, option in whole for value in NO_WHOLE]
    budget = ("run", *METHOD, "--budget-minutes")
    cases += [((*budget, value), ("--budget-minutes",)) for value in NO_TIME]
    cases += [((*PRUNE, "--rate", value), ("--rate",)) for value in (*NO_TIME, "1", "1.2", "43.75", "43%")]
    return [
        *cases,
        ((*PRUNE, "--groups", "7"), ("groups=7",)),
        ((*PRUNE, "--groups", "1000"), ("groups=1000",)),
        (("evaluate", *NET, "--images", "498"), ("498", "497")),
        (("run", *METHOD, "--jobs", "100000"), ("--jobs '100000'",)),
    ]


def names() -> list[tuple]:
    commands = (("run",), ("report",), ("report", "--check"), ("evaluate",), ("notebooks",))
    cases = [((*c, "--suite", name), ("suite",)) for c in commands for name in NO_SUITE]
    for name, said in NO_NETWORK.items():
        cases.append((("prune", "--model", name, *OUT), (said,)))
        cases.append((("evaluate", "--model", name, "--device", "cpu"), (said,)))
    for name in NO_DATASET:
        cases.append(((*PRUNE, "--dataset", name), ("unknown data set", repr(name))))
        cases.append((("evaluate", *NET, "--dataset", name), ("unknown data set", repr(name))))
    cases += [((*PRUNE, "--method", name), ("unknown pruning method",)) for name in NO_METHOD]
    return cases + [(("evaluate", *NET, "--device", name), ("--device",)) for name in NO_DEVICE]


def outputs() -> list[tuple]:
    return [(("prune", *NET, "--output", name), (said,)) for name, said in NO_OUTPUT.items()]


def options() -> list[tuple]:
    return [
        ((*PRUNE, "--method", *method.split(), "--option", option), (option.partition("=")[0],))
        for method, options in NO_OPTION.items()
        for option in options.split()
    ] + [((*PRUNE, "--option", "alpha=0.5", "--option", "alpha=0.9"), ("alpha", "twice"))]


def combinations() -> list[tuple]:
    tmi, wide = (*PRUNE, "--method", "tmi-gkp"), ("--model", "wide.safetensors")
    return [
        ((*PRUNE, "--method", "l1", "--groups", "8"), ("--groups 8",)),
        ((*PRUNE, "--method", "l1", "--epochs", "3"), ("--epochs 3",)),
        ((*PRUNE, "--method", "sfp"), ("sfp", "--epochs")),
        ((*PRUNE, "--method", "slimming"), ("slimming", "--epochs")),
        ((*PRUNE, "--method", "l1", "--snapshot", "net.safetensors"), ("--snapshot",)),
        (tmi, ("tmi-gkp", "--snapshot")),
        ((*tmi, "--snapshot", "missing.safetensors"), ("missing.safetensors",)),
        ((*tmi, "--snapshot", "evil.pt"), ("evil.pt",)),
        ((*tmi, "--snapshot", "hundred.safetensors"), ("another network",)),
        ((*PRUNE, "--dataset", "cifar10"), ("digits", "cifar10")),
        (("prune", "--model", "resnet20", *OUT, "--dataset", "imagenet"), ("imagenet",)),
        (("prune", "--model", "torchvision:resnet18", *OUT, "--dataset", "cifar10"), ("cifar10",)),
        (("prune", *wide, *OUT, "--method", "hrank"), ("imagenet", "load_folder")),
        (("prune", *wide, *OUT, "--method", "sfp", "--epochs", "1"), ("imagenet", "load_folder")),
        (("evaluate", *wide), ("imagenet", "load_folder")),
        (("evaluate", *NET, "--dataset", "cifar100"), ("digits", "cifar100")),
        (("evaluate",), ("--suite NAME or --model NAME",)),
        (("evaluate", *METHOD, *NET), ("--suite NAME or --model NAME",)),
        (("evaluate", *METHOD, "--dataset", "digits"), ("--dataset digits",)),
        (("evaluate", *METHOD), ("no checkpoint of suite 'method'",)),
    ]


def usage() -> list[tuple]:
    return [
        (("prnue",), ("prnue", "prune")),
        (("",), ("''",)),
        (("--fast", "list"), ("--fast",)),
        (("list", "suites"), ("suites",)),
        (("list", "--suite", "digits"), ("--suite",)),
        (("prune",), ("--output",)),
        (("prune", *OUT), ("--model",)),
        (("prune", *NET), ("--output",)),
        (("prune", *OUT, "--model"), ("--model",)),
        (("prune", "net.safetensors", *OUT), ("--model",)),
        ((*PRUNE, "--rates", "0.5"), ("--rates",)),
        (("run",), ("--suite",)),
        (("run", "digits"), ("--suite",)),
        (("evaluate", *NET, "--download=yes"), ("--download",)),
        (("merge",), ("source",)),
        (("merge", "folder", "folder"), ("folder",)),
        (("report", "--chekc"), ("--chekc",)),
        (("notebooks", "--writ"), ("--writ",)),
        (("--plugin",), ("--plugin",)),
    ]


def folders() -> list[tuple]:
    commands = (("run", *METHOD), ("report",), ("merge", "folder"), ("notebooks",))
    wrong = ("", " ", *words("missing notes.txt pipe.tar dangling.safetensors notes.txt/x"))
    cases = [((*command, "--root", root), ("--root",)) for command in commands for root in wrong]
    cases += [((*command, "--root", LONG), ("shorter name",)) for command in commands]
    report, evaluate = ("report", *METHOD, "--root"), ("evaluate", *METHOD, "--root")
    cases += [((*report, f"record-{name}"), (said,)) for name, said in NO_RECORD.items()]
    cases += [((*evaluate, f"record-{name}"), ("results/method",)) for name in ("text", "pipe", "deep")]
    for name in ("syntax", "bytes", "unknown", "bare", "kind", "folder", "pipe"):
        cases.append((("report", "--root", f"claims-{name}"), ("claims.toml",)))
    cases.append((("report",), ("expected/claims.toml",)))
    return [*cases, (("report", "--root", "readme-block"), ("README.md", "nonsense"))]


def merges() -> list[tuple]:
    names = words(
        "missing folder dangling.safetensors socket.safetensors pipe.tar loop.safetensors notes.txt"
    )
    cases = [(("merge", name), (name,)) for name in (*names, "net.safetensors", LONG)]
    cases += [(("merge", f"record-{name}"), (said,)) for name, said in NO_RECORD.items()]
    cases += [(("merge", f"weights-{name}"), (said,)) for name, said in NO_WEIGHTS.items()]
    return [*cases, (("merge", ""), ("give",))]


def notebooks() -> list[tuple]:
    at = ("--root", "project")
    cases = [
        (("notebooks",), ("no notebooks", "--root")),
        (("notebooks", "--root", "folder"), ("no notebooks in folder/notebooks",)),
        (("notebooks", *METHOD, *at), ("suite method", "no records")),
        (("notebooks", "-p", "suite=method", *at), ("suite method", "no records")),
        (("notebooks", "--write", "-p", "value=2", *at), ("--write",)),
        (("notebooks", "--write", "--compute", *at), ("--write",)),
        (("notebooks", "--compute", "-p", "compute=false", *at), ("compute", "twice")),
        (("notebooks", "-p", "value=1", "-p", "value=2", *at), ("value", "twice")),
        (("notebooks", "-p", "va lue=1", *at), ("va lue",)),
    ]
    for name in ("", " ", LONG, *words("00_smu 00_sum.txt ../notes.txt nowhere/00_sum.ipynb /")):
        cases.append((("notebooks", name, *at), ("unknown notebook",)))
    texts = words("value =1 value= 2x=1 valeu=1 value=one value=1.5 value=nan value=true value=[[[[")
    texts += words("value=!!python/object:x compute=maybe compute=1 share=much share=inf suite=3x suite=true")
    cases += [(("notebooks", "-p", text, *at), (text.partition("=")[0],)) for text in texts]
    damaged = words("text empty list object folder pipe")
    return cases + [(("notebooks", "--root", f"notebook-{name}"), ("00_sum.ipynb",)) for name in damaged]


def plugins() -> list[tuple]:
    cases = [(("--plugin", name, "list"), (said,)) for name, said in NO_PLUGIN.items()]
    return [*cases, (("--plugin", "twin.py", "--plugin", "folder/twin.py", "list"), ("twin.py", "rename"))]


def variables() -> list[tuple]:
    cifar = ("evaluate", "--model", "resnet20", "--device", "cpu")
    nowhere = (" ", LONG, *words("nowhere notes.txt ~no-such-user/data pipe.tar"))
    caches = (" ", *words("notes.txt notes.txt/x ~no-such-user/x"))
    cases = [(("list",), (name,), {name: v}) for name in ("GKP_DATA", "GKP_CHECKPOINTS") for v in nowhere]
    cases += [(("list",), ("GKP_CACHE",), {"GKP_CACHE": v}) for v in caches]
    return [
        *cases,
        (("run", *METHOD), ("GKP_PROGRESS", "'loud'"), {"GKP_PROGRESS": "loud"}),
        (("list",), ("nowhere.py",), {"GKP_PLUGINS": "nowhere.py"}),
        (("list",), ("zero.py failed in line 2",), {"GKP_PLUGINS": "zero.py"}),
        (cifar, ("GKP_CACHE",), {"HOME": "", "GKP_CHECKPOINTS": "folder"}),
    ]


FAMILIES = (
    numbers, names, outputs, options, combinations, usage, folders, merges, notebooks, plugins, variables,
)  # fmt: skip
CASES = [case for family in FAMILIES for case in family()]
