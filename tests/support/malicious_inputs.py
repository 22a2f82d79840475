"""Lists targets that no config may name. MARK is a file that they would write, SOURCE an existing one."""

import json
from pathlib import Path
from typing import Any

TOUCH = "touch MARK"
CODE = "open('MARK', 'w')"
COPY = {"_target_": "shutil.copyfile", "src": "SOURCE", "dst": "MARK"}


def _args(*values: Any, **named: Any) -> dict[str, Any]:
    return {"_args_": list(values), **named}


MALICIOUS_TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("os.system", _args(TOUCH)),
    ("os.popen", _args(TOUCH)),
    ("os.execvp", _args("touch", ["touch", "MARK"])),
    ("os.rename", _args("SOURCE", "MARK")),
    ("os.remove", _args("SOURCE")),
    ("os.mkdir", _args("MARK")),
    ("os.symlink", _args("SOURCE", "MARK")),
    ("posix.system", _args(TOUCH)),
    ("subprocess.run", _args(["touch", "MARK"])),
    ("subprocess.Popen", _args(["touch", "MARK"])),
    ("subprocess.getoutput", _args(TOUCH)),
    ("shutil.copyfile", _args("SOURCE", "MARK")),
    ("shutil.rmtree", _args("SOURCE")),
    ("shutil.make_archive", _args("MARK", "zip", "SOURCE")),
    ("pathlib.Path.touch", _args({"_target_": "pathlib.Path", "_args_": ["MARK"]})),
    ("urllib.request.urlretrieve", {"url": "file://SOURCE", "filename": "MARK"}),
    ("builtins.open", {"file": "MARK", "mode": "w"}),
    ("builtins.eval", _args(CODE)),
    ("builtins.exec", _args(CODE)),
    ("builtins.compile", _args(CODE, "x", "exec")),
    ("builtins.__import__", _args("os")),
    ("builtins.getattr", _args("x", "upper")),
    ("io.open", {"file": "MARK", "mode": "w"}),
    ("importlib.import_module", _args("antigravity")),
    ("runpy.run_path", _args("SOURCE")),
    ("code.InteractiveInterpreter", {}),
    ("pickle.loads", _args("cos\nsystem\n(S'touch MARK'\ntR.")),
    ("torch.load", {"f": "SOURCE", "weights_only": False}),
    ("torch.save", {"obj": 1, "f": "MARK"}),
    ("torch.hub.load", {"repo_or_dir": "SOURCE", "model": "x", "source": "local"}),
    ("numpy.save", {"file": "MARK", "arr": [1]}),
    ("joblib.load", _args("SOURCE")),
    ("hydra.utils.instantiate", _args(COPY)),
    ("hydra.utils.get_method", {"path": "os.system"}),
    ("hydra.utils.call", _args(COPY)),
    ("functools.partial", _args({"_target_": "hydra.utils.get_method", "path": "os.mkdir"}, "MARK")),
    ("operator.methodcaller", _args("system", TOUCH)),
    ("webbrowser.open", _args("file://SOURCE")),
    ("ctypes.CDLL", _args("SOURCE")),
    ("socket.socket", {}),
    ("http.server.HTTPServer", _args(["", 0], None)),
    ("logging.FileHandler", {"filename": "MARK"}),
    ("transformers.AutoModel.from_pretrained", _args("SOURCE", trust_remote_code=True)),
    ("diffusers.DiffusionPipeline.from_pretrained", _args("SOURCE", custom_pipeline="SOURCE", trust_remote_code=True)),
    ("huggingface_hub.snapshot_download", {"repo_id": "a/b", "local_dir": "MARK"}),
    ("wandb.init", {"dir": "MARK", "mode": "offline"}),
]
"""Of elsewhere: refused by the name alone."""

TARGET_ALIASES: list[tuple[str, dict[str, Any]]] = [
    ("lgclip.cli.errors.os.system", _args(TOUCH)),
    ("lgclip.cli.errors.sys.exit", {}),
    ("lgclip.cli.sweeps.os.system", _args(TOUCH)),
    ("lgclip.runtime.instantiate.instantiate", _args(COPY)),
    ("lgclip.runtime.instantiate.import_module", _args("antigravity")),
    ("lgclip.runtime.instantiate.build", _args(COPY)),
    ("lgclip.cli.doctor.shutil.copyfile", _args("SOURCE", "MARK")),
    ("lgclip.runtime.sweep_job.Path", _args("MARK")),
    ("lgclip.store.atomic.atomic_write", _args("MARK", "x")),
    ("lgclip.store.atomic.write_json", _args("MARK", {})),
    ("lgclip.store.root.open_root", _args("MARK")),
    ("lgclip.store.images.ImageStore", _args("MARK")),
    ("lgclip.cli.sweeps.Sweeps", {}),
    ("lgclip.store.checkpoints.SafetensorsIO", {}),
    ("lgclip.datasets.folder.Folder.__init__", {}),
    ("lgclip.encoder.timm.load_state_dict", _args("SOURCE")),
    ("lgclip.methods.zero_shot.ZeroShot.load_from_checkpoint", _args("SOURCE")),
    ("lightning.pytorch.trainer.trainer.os.system", _args(TOUCH)),
    ("lightning.pytorch.loggers.csv_logs.os.mkdir", _args("MARK")),
    ("lightning.Trainer.save_checkpoint", _args(None, "MARK")),
    ("lightning.pytorch.cli.LightningCLI", {}),
    ("lightning.pytorch.callbacks.LambdaCallback", {}),
    ("lightning.pytorch.plugins.TorchCheckpointIO", {}),
    ("lightning.fabric.utilities.cloud_io._load", _args("SOURCE")),
    ("lightning.pytorch.loggers.Logger.save", {}),
]
"""Through packages whose parts are allowed: refused by what they really are."""

LOOKALIKES = ["lgclip_evil", "lgclipx", "lightningx", "lightning_evil", "LGCLIP", "lgcl\u0456p", "pytorch_lightningx"]

HARMLESS_PART = {"_target_": "builtins.dict"}  # Hydra's own list lets it through, so that what stands in it is reached
TARGET_PLACES: list[tuple[dict[str, Any], str]] = [
    ({"part": {"a": {"b": {"c": COPY}}}}, "part.a.b.c"),
    ({"part": {"a": [1, [2, COPY]]}}, "part.a[1][1]"),
    ({"part": {"a": [{"b": COPY}]}}, "part.a[0].b"),
    ({"part": {"a": "${hostile}"}, "hostile": COPY}, "part.a"),
    ({"part": {"a": {**COPY, "_target_": "${name}"}}, "name": "shutil.copyfile"}, "part.a"),
    ({"part": {"a": {**COPY, "_target_": "${one}.${two}"}}, "one": "shutil", "two": "copyfile"}, "part.a"),
    ({"part": {"a": {**COPY, "_target_": "\\${name}"}}, "name": "shutil.copyfile"}, "part.a"),
    ({"part": {"a": "${oc.create:${hostile}}"}, "hostile": COPY}, "part.a"),
    ({"part": {"a": "${oc.create:${text}}"}, "text": json.dumps(COPY)}, "part.a"),
    ({"part": {"save_dir": None}, "hostile": json.dumps(COPY)}, "part.save_dir"),
    ({"part": {"a": {**COPY, "_partial_": False}}}, "part.a"),
    ({"part": {"_recursive_": False, "_convert_": "none", "a": COPY}}, "part.a"),
]
"""Configs that hold a hostile target somewhere, and where."""


def malicious_override(place: str, name: str, values: dict[str, Any], mark: Path) -> str:
    """Returns the override that sets a target at a place of the config."""
    text = _typed({"_target_": name, **values}).replace("MARK", str(mark))
    return f"{'' if place.startswith('+') else '+'}{place}={text}".replace("SOURCE", str(mark.with_name("source")))


def _typed(value: Any) -> str:
    """Returns a value in the syntax of Hydra's command line."""
    match value:
        case dict():
            return "{" + ",".join(f"{key}:{_typed(inside)}" for key, inside in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_typed, value)) + "]"
        case str():
            return "'" + value.replace("'", r"\'") + "'"
        case _:
            return json.dumps(value)
