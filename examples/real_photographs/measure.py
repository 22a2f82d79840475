"""Builds a classifier from the folders of make_folders.py, and measures it.

    python examples/real_photographs/measure.py FOLDER

Prints the accuracy on `photographs/`, and how well images of `unknown/` are told from them.
"""

import sys
from pathlib import Path

from sklearn.metrics import roc_auc_score

import lgclip


def main() -> None:
    root = Path(sys.argv[1])
    classifier = lgclip.build(
        root / "names.txt",
        encoder="efficientnet_lite0",
        diffuser="folder",
        overrides=[f"diffuser.root={root / 'prototypes'}", "prompts_per_class=5", "rejection=positives"],
    )
    known = list(classifier.classify(root / "photographs"))
    unknown = list(classifier.classify(root / "unknown"))
    correct = [prediction.label == Path(prediction.path).parent.name for prediction in known]
    kept = [not prediction.rejected for prediction in known]
    rejected = [bool(prediction.rejected) for prediction in unknown]
    # A score is missing only where an image cannot be read.
    confidences = [prediction.score or 0.0 for prediction in known + unknown]
    auroc = roc_auc_score([True] * len(known) + [False] * len(unknown), confidences)

    print(f"photographs: {sum(correct)} of {len(known)} correct ({sum(correct) / len(known):.1%})")
    print(f"mean probability of the predicted class: {sum(confidences[: len(known)]) / len(known):.1%}")
    print(f"kept {sum(kept)} of {len(known)} photographs, rejected {sum(rejected)} of {len(unknown)} unknown images")
    print(f"AUROC of the probability, photographs against unknown images: {auroc:.3f}")


if __name__ == "__main__":
    main()
