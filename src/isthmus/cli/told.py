"""What the help of each command ends with: an example, and what exit code 1 says where the command has one."""

EXAMPLES = {
    "train": "isthmus train --model mlp:64-60x4-10 --data digits --seed 0 --out a.safetensors",
    "connect": "isthmus connect a.safetensors b.safetensors --method Subnetwork --out result",
    "compare": "isthmus compare a.safetensors b.safetensors --budget 200 --out compared",
    "align": "isthmus align a.safetensors b.safetensors --by weights --out aligned.safetensors",
    "check": "isthmus check a.safetensors b.safetensors --curve --out verdict",
    "merge": "isthmus merge a.safetensors b.safetensors --method slerp --out merged.safetensors",
    "graph": "isthmus graph a.safetensors b.safetensors c.safetensors --method Bezier --out graph",
    "methods": "isthmus methods --json",
    "report": "isthmus report result",
    "demo": "isthmus demo --out demo-results",
    "sweep": "isthmus sweep sweep.yaml --set seeds=3 --workers 2",
    "theory": "isthmus theory a.safetensors b.safetensors --out premises",
    "profile": "isthmus profile result/path.safetensors --num-points 201 --out result",
    "certify": "isthmus certify result/path.safetensors --gap 0.05 --out result",
    "ensemble": "isthmus ensemble result/path.safetensors --points 7 --out averages",
    "plane": "isthmus plane a.safetensors b.safetensors --path result/path.safetensors --out result",
    "stability": "isthmus stability a.safetensors --search gates --out halves",
    "experiment list": "isthmus experiment list",
    "experiment run": "isthmus experiment run nguyen2021 --scale smoke --workers 2",
    "experiment status": "isthmus experiment status nguyen2021",
    "experiment table": "isthmus experiment table nguyen2021 --scale smoke --markdown",
    "experiment figures": "isthmus experiment figures nguyen2021 --scale smoke --out figures",
}
FAILS = {
    "train": "the loss was not finite; the last finite weights are written",
    "connect": "the method did not succeed, or the loss is not finite on the path; the result is written",
    "compare": "no method succeeded",
    "check": "no-go",
    "merge": "the loss is above the level; nothing is written without --anyway",
    "demo": "a method did not succeed",
    "sweep": "a row failed; the others are kept",
    "profile": "the loss is not finite on the path",
    "plane": "no loss on the plane is finite",
    "certify": "a segment is not proved, or a stored proof does not hold",
    "experiment run": "a cell failed; the others are kept",
    "experiment table": "nothing is done yet",
}


def epilog(name: str) -> str:
    """The last lines of the help of a command."""
    return f"Example: {EXAMPLES[name]}" + (f"\n\nExit code 1: {FAILS[name]}." if name in FAILS else "")
