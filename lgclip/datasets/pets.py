"""Oxford-IIIT Pet."""

from collections.abc import Sequence

from lgclip.datasets.files import ImageFiles, named
from lgclip.datasets.reading import number, rows
from lgclip.datasets.tree import Archive, Tree, chosen

CLASSES = 37
IMAGES = {"official": {"trainval": 3_680, "test": 3_669}}
_URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/"

TREE = Tree(
    "pets",
    _URL,
    (
        Archive(f"{_URL}data/images.tar.gz", "images", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        Archive(f"{_URL}data/annotations.tar.gz", "annotations", "md5:95a8c909bbe2e81eed6a22bccdf3f68f"),
    ),
    ("images", "annotations/trainval.txt", "annotations/test.txt"),
    ("", "oxford-iiit-pet"),
)


class Pets(ImageFiles):
    """37 breeds of cats and dogs (Parkhi et al., CVPR 2012).

    Args:
        root: The folder that `images` and `annotations` lie in; None: `$LGCLIP_DATA/pets`, or else `data/pets`.
        split: `official` (its test part), `official-trainval`, or `all`.
        names: `clip` (dogs in small letters), `folder` (as in the files' names), or a text file.
        download: Whether to download what is missing.
        context: What kind of things the classes are.
        templates: Sentences for the text baseline; None makes one of the context.
        counts: Whether the numbers of images must be the official ones.

    Raises:
        ValueError: If a file is missing, a line is damaged or a count is off; the message says which.
    """

    def __init__(
        self,
        root: str | None = None,
        split: str = "official",
        names: str = "clip",
        download: bool = False,
        context: str = "a type of pet",
        templates: Sequence[str] | None = None,
        counts: bool = True,
    ) -> None:
        asked = chosen(split, IMAGES)
        place = TREE.place(root, download)
        # Cats' files begin with a capital, dogs' do not: sorting names puts all cats first, and every
        # class after Abyssinian would have another's label. The numbers in the files are the labels.
        breeds: dict[int, str] = {}
        entries: dict[str, list[tuple[str, int]]] = {}
        for part in ("trainval", "test"):
            path = place / "annotations" / f"{part}.txt"
            entries[part] = []
            for image, label, _, _ in rows(path, 4):
                at, breed = number(path, label, CLASSES) - 1, image.rpartition("_")[0]
                if breeds.setdefault(at, breed) != breed:
                    raise ValueError(f"{path} is damaged: class {label} is {breed} and {breeds[at]}")
                entries[part].append((f"images/{image}.jpg", at))
        wanted = [entry for part in asked.parts for entry in entries[part]]
        files, labels = [file for file, _ in wanted], [label for _, label in wanted]
        shown = TREE.check(place, files, labels, asked, CLASSES if counts else 0)
        found = [breeds.get(at, "") for at in range(CLASSES)]
        super().__init__(
            "pets", place, files, labels, named("pets", names, found),
            split=shown, names=names, context=context, templates=templates, training=asked.training,
        )  # fmt: skip
