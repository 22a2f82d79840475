"""Lays out the page in Gradio, and connects its buttons with a session.

Names of classes and files are text of strangers. They appear only in components that show plain text: no `gr.HTML`, no
`gr.Markdown`, and no toast, which would read them as markup.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Default

from lgclip.cli.studio.photographs import ClassImages, Photo
from lgclip.cli.studio.session import Session, available_downloads, error_message
from lgclip.cli.studio.sessions import SessionStore

_FONTS = ["system-ui", "sans-serif"]
_MONO_FONTS = ["ui-monospace", "monospace"]

_CSS = """
.gradio-container { max-width: 60rem !important; margin: 0 auto !important; }
.gradio-container, .gradio-container * { overflow-wrap: anywhere; }
.gradio-container :focus-visible { outline: 3px solid #2563eb !important; outline-offset: 2px; }
.dark .gradio-container :focus-visible { outline-color: #93c5fd !important; }
.grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; }
/* Gradio's columns are 100 pixels wide at least, so that five of them would scroll a phone sideways. */
.grid-container { grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)) !important; }
#photos .grid-container { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)) !important; }
#similar .grid-container { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) !important; }
.grid-container { padding-top: 2rem !important; }
.thumbnail-item.thumbnail-lg { aspect-ratio: 1 !important; height: auto !important; min-height: 0 !important; }
/* Gray on white is too faint to read. */
.info-text, .block label > span, label[data-testid="block-label"] { color: var(--body-text-color) !important; }
.gallery-item .caption-label { white-space: normal !important; max-width: 100% !important; }
.block .empty { min-height: 4rem !important; }
footer { display: none !important; }
"""

LAUNCH: dict[str, Any] = {
    # System fonts: Gradio's own come from Google. White on its orange is too faint to read.
    "theme": Default(primary_hue="blue", font=_FONTS, font_mono=_MONO_FONTS).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
    ),
    "css": _CSS,
    "share": False,
    "quiet": True,
    "show_error": False,
    "footer_links": [],
    "enable_monitoring": False,
    "ssr_mode": False,
    "pwa": False,
    "mcp_server": False,
}
"""Arguments of `launch` that every page has."""

_NAMES_HELP = "One name per line; after a tab, what the class looks like."
_DROP_HELP = "Marked images (click an image to mark it, again to take the mark off)"
_SIZE = 120


def build_page(store: SessionStore) -> gr.Blocks:
    """Returns the page.

    Args:
        store: The sessions of its tabs.
    """
    page = gr.Blocks(title="lgclip studio", analytics_enabled=False, delete_cache=(3600, 7200))
    with page:
        gr.Markdown("# lgclip studio\nClass names in, image classifier out. No photograph leaves this machine.")
        version = gr.Number(value=0, visible=False)
        names = gr.Textbox(label="1. Class names", info=_NAMES_HELP, lines=6, max_length=20_000, elem_id="names")
        build = gr.Button("Build", variant="primary", elem_id="build")
        progress = gr.Textbox(label="Progress", lines=1, interactive=False, elem_id="progress")
        quality = gr.Textbox(label="What to expect", lines=1, interactive=False, elem_id="quality")

        gr.Markdown("## 2. Synthetic images\nLook at them: a class whose images are wrong is classified wrongly.")
        marked = gr.Textbox(label=_DROP_HELP, interactive=False, elem_id="marked")
        drop = gr.Button("Drop the marked images", elem_id="drop")
        drop_status = gr.Textbox(label="Result of dropping", interactive=False, elem_id="drop-status")

        _render_galleries(store, version, marked)

        gr.Markdown("## 3. Photographs")
        files = gr.File(label="Photographs", file_count="multiple", file_types=["image"], elem_id="files", height=140)
        photo_status = gr.Textbox(label="Classified", interactive=False, elem_id="photo-status")
        photos = gr.Gallery(
            label="Predictions", columns=3, allow_preview=False, interactive=False, elem_id="photos", format="png",
            buttons=[],
        )  # fmt: skip
        photo = gr.Dropdown(label="Photograph to look at", choices=[], type="index", elem_id="photo")
        details = gr.Textbox(label="This photograph", lines=1, interactive=False, elem_id="details")
        similar = gr.Gallery(
            label="Most similar synthetic images", columns=5, allow_preview=False, interactive=False,
            elem_id="similar", format="png", buttons=[],
        )  # fmt: skip
        label = gr.Dropdown(label="True class of this photograph", choices=[], elem_id="label")
        correct = gr.Button("Use it as an example of this class", elem_id="correct")

        gr.Markdown("## 4. More classes")
        more = gr.Textbox(label="Classes to add", info=_NAMES_HELP, lines=2, max_length=20_000, elem_id="more")
        add = gr.Button("Add", elem_id="add")
        add_status = gr.Textbox(label="Progress of adding", lines=1, interactive=False, elem_id="add-status")

        gr.Markdown("## 5. Files")
        downloads = available_downloads()
        kind = gr.Radio(
            label="File to make", choices=[(name, key) for key, name in downloads.items()],
            value=next(iter(downloads)), elem_id="kind",
        )  # fmt: skip
        make = gr.Button("Make the file", elem_id="make")
        download = gr.File(label="Download", interactive=False, height=90, elem_id="made")
        file_status = gr.Textbox(label="Result", interactive=False, elem_id="file-status")

        views = _Views(version, quality, marked, photos, photo, details, similar, label)
        _connect_classes(store, views, names, build, progress, more, add, add_status, drop, drop_status)
        _connect_photos(store, views, files, photo_status, correct)
        make.click(_file_writer(store), [kind], [download, file_status], api_visibility="private")
        page.load(_refresher(store), None, list(views.all()), api_visibility="private")
        page.unload(_forgetter(store))
    return page


class _Views:
    """Holds the components that show the state of a session, in one order for every action."""

    def __init__(
        self,
        version: gr.Number,
        quality: gr.Textbox,
        marked: gr.Textbox,
        photos: gr.Gallery,
        photo: gr.Dropdown,
        details: gr.Textbox,
        similar: gr.Gallery,
        label: gr.Dropdown,
    ) -> None:
        self.version = version
        self.quality = quality
        self.marked = marked
        self.photos = photos
        self.photo = photo
        self.details = details
        self.similar = similar
        self.label = label

    def all(self) -> tuple[Any, ...]:
        return (
            self.version, self.quality, self.marked, self.photos, self.photo, self.details, self.similar, self.label,
        )  # fmt: skip


_unchanged = gr.skip


def _state(session: Session, place: int = 0) -> tuple[Any, ...]:
    """Returns the values of all views, in the order of `_Views.all`."""
    names = list(session.class_names())
    return (
        session.revision,
        session.expectations(),
        _marked_text(session),
        [(_thumbnail(photo), photo.caption) for photo in session.photos],
        _photo_choices(session.photos, place),
        session.details(place),
        _similar_images(session, place),
        gr.update(choices=names, value=names[0] if names else None),
    )


def _photo_choices(photos: Sequence[Photo], place: int) -> Any:
    choices = [f"{number}. {photo.name}" for number, photo in enumerate(photos, 1)]
    return gr.update(choices=choices, value=choices[place] if place < len(choices) else None)


def _thumbnail(photo: Photo) -> Any:
    from PIL import Image

    # A gray square stands for a file that cannot be read.
    return photo.thumbnail or Image.new("RGB", (_SIZE, _SIZE), (128, 128, 128))


def _similar_images(session: Session, place: int) -> list[tuple[Any, str]]:
    if not 0 <= place < len(session.photos):
        return []
    images = session.photos[place].similar
    return [(item.image, f"{item.name}, {item.similarity:.2f}") for item in images if item.image is not None]


def _marked_text(session: Session) -> str:
    if not session.marked:
        return "none"
    places = {image_id: (group.name, number) for group in session.class_images()
              for number, image_id in enumerate(group.ids, 1)}  # fmt: skip
    listed = [
        f"{places[image_id][0]}, image {places[image_id][1]}" for image_id in session.marked if image_id in places
    ]
    return "; ".join(listed)


# ------------------------------------------------------------------------------------------------------------- actions


def _session(store: SessionStore, request: gr.Request) -> Session:
    return store.get(str(request.session_hash))


def _connect_classes(
    store: SessionStore,
    views: _Views,
    names: gr.Textbox,
    build: gr.Button,
    progress: gr.Textbox,
    more: gr.Textbox,
    add: gr.Button,
    add_status: gr.Textbox,
    drop: gr.Button,
    drop_status: gr.Textbox,
) -> None:
    """Connects what changes classes and synthetic images."""
    outputs = views.all()

    def build_classes(text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = _session(store, request)
        yield from _progressing(session, session.build(text))

    def add_classes(text: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = _session(store, request)
        yield from _progressing(session, _deferred(lambda: session.add(text)))

    def drop_images(request: gr.Request) -> tuple[Any, ...]:
        session = _session(store, request)
        return _acted(session, session.drop_marked)

    build.click(build_classes, [names], [progress, *outputs], api_visibility="private", show_progress="hidden")
    add.click(add_classes, [more], [add_status, *outputs], api_visibility="private", show_progress="hidden")
    drop.click(drop_images, None, [drop_status, *outputs], api_visibility="private")


def _connect_photos(
    store: SessionStore, views: _Views, files: gr.File, photo_status: gr.Textbox, correct: gr.Button
) -> None:
    """Connects what classifies photographs and corrects their labels."""
    outputs = views.all()

    def classify(paths: list[str] | None, request: gr.Request) -> tuple[Any, ...]:
        session = _session(store, request)
        return _acted(session, lambda: session.classify([Path(path) for path in paths or ()]))

    def show(place: int | None, request: gr.Request) -> tuple[Any, ...]:
        session = _session(store, request)
        chosen = 0 if place is None else place
        return session.details(chosen), _similar_images(session, chosen)

    def pick(request: gr.Request, event: gr.SelectData) -> Any:
        return _photo_choices(_session(store, request).photos, int(event.index))

    def correct_label(place: int | None, name: str | None, request: gr.Request) -> tuple[Any, ...]:
        session = _session(store, request)
        chosen = -1 if place is None else place
        return _acted(session, lambda: session.correct(chosen, name or ""), max(chosen, 0))

    files.upload(classify, [files], [photo_status, *outputs], api_visibility="private")
    views.photo.change(show, [views.photo], [views.details, views.similar], api_visibility="private")
    views.photos.select(pick, None, [views.photo], api_visibility="private")
    correct.click(
        correct_label, [views.photo, views.label], [photo_status, *outputs], api_visibility="private"
    )  # fmt: skip


def _deferred(start: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Calls `start` when the first text is requested, so that its errors are raised there too."""
    yield from start()


def _progressing(session: Session, texts: Iterator[str]) -> Iterator[tuple[Any, ...]]:
    """Yields the progress of an action, and at its end the state of the session."""
    skipped = (_unchanged(),) * 8
    text = ""
    try:
        for text in texts:
            yield (text, *skipped)
    except Exception as error:
        yield (error_message(error), *skipped)
        return
    yield (text, *_state(session))


def _acted(session: Session, action: Callable[[], str], place: int = 0) -> tuple[Any, ...]:
    """Returns the message of an action and the state of the session; a mistake is a message too."""
    try:
        message = action()
    except Exception as error:
        return (error_message(error), *((_unchanged(),) * 8))
    return (message, *_state(session, place))


def _file_writer(store: SessionStore) -> Callable[..., tuple[Any, str]]:
    def write(kind: str, request: gr.Request) -> tuple[Any, str]:
        session = _session(store, request)
        try:
            path = session.write(kind)
        except Exception as error:
            return None, error_message(error)
        return str(path), f"{path.name}: {path.stat().st_size / 1e6:.2f} MB"

    return write


def _refresher(store: SessionStore) -> Callable[..., tuple[Any, ...]]:
    def refresh(request: gr.Request) -> tuple[Any, ...]:
        return _state(_session(store, request))

    return refresh


def _forgetter(store: SessionStore) -> Callable[..., None]:
    def forget(request: gr.Request) -> None:
        store.remove(str(request.session_hash))

    return forget


# ----------------------------------------------------------------------------------------------------------- galleries


def _render_galleries(store: SessionStore, version: gr.Number, marked: gr.Textbox) -> None:
    """Shows a gallery per class, which is made again when the classifier has changed."""

    @gr.render(inputs=[version], triggers=[version.change], show_progress="hidden")
    def galleries(number: float, request: gr.Request) -> None:
        session = _session(store, request)
        for place, group in enumerate(session.class_images()):
            _gallery(store, group, place, marked)


def _gallery(store: SessionStore, group: ClassImages, place: int, marked: gr.Textbox) -> None:
    hidden = f" (first {len(group.ids)} of {group.total})" if len(group.ids) < group.total else ""
    gallery = gr.Gallery(
        value=[(image, str(number)) for number, image in enumerate(group.images, 1)],
        label=f"{group.name}{hidden}", columns=5, allow_preview=False, interactive=False, format="png", buttons=[],
        elem_id=f"class-{place}", elem_classes=["prototypes"],
    )  # fmt: skip
    ids = list(group.ids)

    def mark(request: gr.Request, event: gr.SelectData) -> str:
        session = _session(store, request)
        try:
            session.toggle(ids[int(event.index)])
        except (ValueError, IndexError) as error:
            return error_message(error) if isinstance(error, ValueError) else _marked_text(session)
        return _marked_text(session)

    gallery.select(mark, None, [marked], api_visibility="private")
