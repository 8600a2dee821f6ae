"""`pdmesh compose`: writes compose files for a mesh.yaml, and what their containers read."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import yaml

from common.config.keys import nearest
from common.config.load import load_mesh
from common.config.types import MeshConfig, TlsConfig
from common.errors import ConfigError
from common.model_store import BUILT_IN
from services.cli.outcome import ExitCode
from services.launch.compose import WRITTEN_BY, compose_stack, compose_text
from services.launch.compose_mesh import MESH_FILE
from services.launch.compose_settings import ComposeFile, ComposeSettings, ComposeStack, Images


class ComposeFlags(msgspec.Struct, frozen=True):
    """The flags of `pdmesh compose`; None is not given."""

    config: Path
    out: Path = Path("compose.yaml")
    host: str | None = None
    gateway_host: str | None = None
    image: str | None = None
    image_cuda: str | None = None
    image_rocm: str | None = None
    cache: Path | None = None


def run_compose(flags: ComposeFlags, environ: Mapping[str, str]) -> ExitCode:
    """Write the files, and print the path of each compose file. Raises ConfigError."""
    config = _with_absolute_paths(load_mesh(flags.config, environ, {}))
    stack = compose_stack(config, _settings(flags, config))
    chosen = {_target(flags, stack, file): file for file in _asked(flags.host, stack)}
    folder = _folder(flags.out)
    for path in (*chosen, folder / MESH_FILE):
        _refuse_to_overwrite(path, flags.config)
    try:
        _write_files(folder, stack)
        for path, file in chosen.items():
            _write(path, compose_text(file))
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename!r}: {error.strerror}; give another -o") from error
    for path in chosen:
        print(path)
    return ExitCode.DONE


def _with_absolute_paths(config: MeshConfig) -> MeshConfig:
    """`config` with keys and TLS files that can be found from anywhere; profiles are copied from where they are."""
    gateway, transfer = config.gateway, config.transfer
    if gateway.control_keys is not None:
        gateway = msgspec.structs.replace(gateway, control_keys=_absolute(gateway.control_keys))
    if gateway.api_keys is not None:
        gateway = msgspec.structs.replace(gateway, api_keys=_absolute(gateway.api_keys))
    if (tls := transfer.tls) is not None:
        tls = TlsConfig(_absolute(tls.certificate), _absolute(tls.key), _absolute(tls.authority))
        transfer = msgspec.structs.replace(transfer, tls=tls)
    return msgspec.structs.replace(config, gateway=gateway, transfer=transfer)


def _settings(flags: ComposeFlags, config: MeshConfig) -> ComposeSettings:
    default = Images()
    images = Images(
        cpu=flags.image or default.cpu,
        cuda=flags.image_cuda or flags.image or default.cuda,
        rocm=flags.image_rocm or flags.image or default.rocm,
    )
    return ComposeSettings(
        images=images,
        files=f"./{_folder(flags.out).name}",
        cache=None if flags.cache is None else str(flags.cache.absolute()),
        local_model=_local_model(config.model),
        gateway_host=flags.gateway_host,
    )


def _local_model(name: str) -> str | None:
    """The absolute path that mesh.yaml means by `model: name`, if it is one."""
    path = _path(name)
    is_local = name and name not in BUILT_IN and (path.is_dir() or path.suffix == ".gguf")
    return str(path.absolute()) if is_local else None


def _absolute(name: str) -> str:
    return str(_path(name).absolute())


def _path(name: str) -> Path:
    return Path(name).expanduser() if name.startswith("~/") else Path(name)


def _asked(host: str | None, stack: ComposeStack) -> tuple[ComposeFile, ...]:
    if host is None:
        return stack.files
    names = [file.host for file in stack.files if file.host is not None]
    if not names:
        raise ConfigError(f"--host is {host!r}, but mesh.yaml names no machines: everything runs on one; drop --host")
    if host not in names:
        raise ConfigError(f"--host {host!r} is no machine of this mesh; {nearest(host, names)}")
    return tuple(file for file in stack.files if file.host == host)


def _target(flags: ComposeFlags, stack: ComposeStack, file: ComposeFile) -> Path:
    """The file that was asked for, or one beside it for each machine."""
    if len(stack.files) == 1 or flags.host is not None:
        return flags.out
    return flags.out.with_name(f"{flags.out.stem}.{file.host}{flags.out.suffix}")


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.stem}.mesh")


def _refuse_to_overwrite(path: Path, source: Path) -> None:
    try:
        is_ours = path.read_text(encoding="utf-8").startswith(WRITTEN_BY)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(f"{str(path)!r} is there and was not written by `pdmesh compose`: give another file with -o")
    if path.resolve() == source.resolve():
        raise ConfigError(f"{str(path)!r} would be written over: give the mesh.yaml that it was made from")


def _write_files(folder: Path, stack: ComposeStack) -> None:
    """Readable for all, since containers have a user of their own; nothing in there is secret."""
    _make(folder)
    text = yaml.safe_dump(msgspec.to_builtins(stack.mesh), sort_keys=False)
    _write(folder / MESH_FILE, f"{WRITTEN_BY}\n{text}")
    for name, source in stack.profiles.items():
        _make((folder / name).parent)
        try:
            shutil.copyfile(source, folder / name)
        except OSError as error:
            raise ConfigError(f"the profile {source!r} cannot be copied: {error.strerror}") from error
        (folder / name).chmod(0o644)


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)
