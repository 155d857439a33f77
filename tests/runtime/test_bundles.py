"""Bundles: what is chosen ahead of time for a GPU that is absent is what calls take there."""

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pdssm_compiler import ArgumentError, CacheWarning, ScanSpec, compile, load_kernels
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import bundles, compile_service, deployed, saving, settings
from pdssm_compiler.runtime.bundles import SCHEMA, Choice, Choices, Manifest, read_manifests
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.entries import read_key, write_entry
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.runtime.key import generator_hash
from pdssm_compiler.schedules.target import describe, named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.kernels import under_stress
from tests.missing import without

pytestmark = pytest.mark.usefixtures("no_shipped_logs")

H100 = named_target("h100")
# A part of an H100: what is chosen for it is not what is chosen for the whole.
HALF = replace(H100, name="Half a GPU", processors=66, shared_memory=164 << 10)
PROGRAM = specialise(pd_scan(PdScan(32, 8)))
FEW_LONG = Problem.bucket(100, 8000)


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of an earlier test."""
    monkeypatch.setattr(deployed, "_loaded", [])
    monkeypatch.setattr(deployed, "_folders", {})
    monkeypatch.delenv(settings.KERNELS, raising=False)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are saved without machine code in them."""
    for module in (saving, compile_service):
        monkeypatch.setattr(module, "obtain", lambda *_: ({"kernel.cubin": b""}, "compiled"))


def described(folder: Path, target: Any = HALF) -> Path:
    path = folder / "gpu.toml"
    path.write_text(describe(target))
    return path


def only(config: Any, template: str, target: Any = HALF, **changes: Any) -> Manifest:
    """A manifest by which all calls take one config."""
    choice = Choice(template, asdict(config), "heuristic", tuple(Problem.buckets()), ())
    choices = Choices("forward", PROGRAM.fingerprint, {}, (choice,))
    return replace(Manifest(target, generator_hash(), (choices,)), **changes)


def load(manifest: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    manifest.write(folder)
    named = settings.kernel_folders()
    monkeypatch.setenv(settings.KERNELS, ":".join(map(str, [*named, folder])))


# -- what is saved --------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("state_size", [1, *under_stress(32)])
def test_every_call_finds_its_kernel(tmp_path: Path, state_size: int) -> None:
    spec = ScanSpec(state_size, 4, map_class="permutation")
    saved = compile(spec, described(tmp_path), config=None).save(tmp_path / "kernels")
    (manifest,) = read_manifests(tmp_path / "kernels")
    assert manifest.target == HALF
    assert {each.kind for each in manifest.programs} == {"forward", "backward", "helper"}
    assert set(manifest.kernels) == {kernel.folder.name for kernel in saved}
    for program in manifest.programs:
        sizes = [problem for choice in program.choices for problem in choice.sizes]
        assert sorted(map(str, sizes)) == sorted(map(str, Problem.buckets()))
        # cpu templates are for no GPU, and no reason is one for all.
        assert not set(program.refused) & {choice.template for choice in program.choices}
    # Also calls of so many narrow rows that a warp takes several.
    forward = specialise(pd_scan(spec.program_spec(initial_state=False, final_state=False)))
    (of_forward,) = (each for each in manifest.programs if each.program == forward.fingerprint)
    for rows, length in ((1, 1), (3, 5000), (200, 700), (60_000, 100), (10**7, 10**6)):
        wanted = choose(forward, HALF, None, Problem.bucket(rows, length))
        (found,) = (
            choice
            for choice in of_forward.choices
            if Problem(rows, length).nearest_bucket in choice.sizes
        )
        assert (found.template, found.config) == (wanted.template.name, asdict(wanted.config))
        assert found.reason == wanted.reason == "heuristic"
        assert found.kernels


@pytest.mark.usefixtures("uncompiled")
def test_one_manifest_a_scan_and_target(tmp_path: Path) -> None:
    for spec in (ScanSpec(4, 2), ScanSpec(8, 2), ScanSpec(4, 2)):
        for target in ("h100", "h200"):
            compile(spec, target, config="cuda-step").save(tmp_path)
    found = read_manifests(tmp_path)
    assert len(found) == 4
    assert {manifest.target.name for manifest in found} == {H100.name, "NVIDIA H200"}
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.glob("manifest-*"))
    assert not list(tmp_path.glob("staged-*"))


def test_plain_pytorch_is_not_handed_on_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, tvm="it is missing")
    assert compile(ScanSpec(4, 2), "cpu").save(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


# -- what calls take ------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
def test_calls_follow_what_was_chosen_for_the_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile(ScanSpec(32, 8), described(tmp_path)).save(tmp_path / "kernels")
    chosen = choose(PROGRAM, HALF, None, FEW_LONG)
    own = choose(PROGRAM, H100, None, FEW_LONG)
    assert (chosen.template, chosen.config) != (own.template, own.config)
    monkeypatch.setenv(settings.KERNELS, str(tmp_path / "kernels"))
    found = choose(PROGRAM, H100, None, FEW_LONG)
    assert (found.template, found.config) == (chosen.template, chosen.config)
    assert found.reason == "choice ahead of time for Half a GPU: heuristic"
    # What is compiled now is chosen anew.
    assert choose(PROGRAM, H100, None, FEW_LONG, ahead=False) == own
    # Another architecture has its own.
    a100 = named_target("a100")
    assert choose(PROGRAM, a100, None, FEW_LONG).reason == "heuristic"


def test_the_callers_own_word_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CudaRowsConfig(2, 3)
    load(only(config, "cuda-rows"), tmp_path / "kernels", monkeypatch)
    assert choose(PROGRAM, H100, None, FEW_LONG).config == config
    # A template's name leaves the config to what was chosen of that template.
    assert choose(PROGRAM, H100, "cuda-rows", FEW_LONG).config == config
    assert choose(PROGRAM, H100, "cuda-step", FEW_LONG).reason == "explicit template"
    other = TritonRowsConfig(1, 1, 1)
    assert choose(PROGRAM, H100, other, FEW_LONG).reason == "explicit config"
    assert choose(PROGRAM, H100, other, FEW_LONG).config == other


def test_the_devices_own_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (target, tile) in enumerate(((HALF, 2), (H100, 4), (named_target("h200"), 8))):
        manifest = only(CudaRowsConfig(tile, 3), "cuda-rows", target)
        load(manifest, tmp_path / str(number), monkeypatch)
    assert choose(PROGRAM, H100, None, FEW_LONG).config.tile == 4
    assert choose(PROGRAM, HALF, None, FEW_LONG).config.tile == 2
    nameless = replace(H100, name="", processors=70)
    assert choose(PROGRAM, nameless, None, FEW_LONG).config.tile == 2


def test_what_does_not_fit_the_device_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(only(CudaRowsConfig(16, 8), "cuda-rows"), tmp_path / "kernels", monkeypatch)
    small = replace(H100, shared_memory=16 << 10)
    with pytest.warns(
        CacheWarning,
        match=r"for Half a GPU does not run on cuda:sm_90: cuda-rows .*: \d+ bytes of shared",
    ):
        assert choose(PROGRAM, small, None, FEW_LONG).reason == "heuristic"


def test_a_choice_whose_kernel_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing compiles, it is no choice."""
    load(only(CudaRowsConfig(2, 3), "cuda-rows"), tmp_path / "kernels", monkeypatch)
    without(monkeypatch, tvm_cuda="it is missing")
    assert choose(PROGRAM, H100, None, FEW_LONG).template.name == "triton-chunks"


# -- what is read ---------------------------------------------------------------------------------

problems = st.sampled_from(Problem.buckets())
kernel_choices = st.builds(
    Choice,
    st.text(max_size=9),
    st.dictionaries(st.text(max_size=9), st.none() | st.booleans() | st.integers()),
    st.text(max_size=9),
    st.lists(problems, unique=True, max_size=9).map(
        lambda found: tuple(sorted(found, key=lambda each: (each.rows or 0, each.length or 0)))
    ),
    st.lists(st.text(max_size=9)).map(tuple),
)
programs = st.builds(
    Choices,
    st.text(max_size=9),
    st.text(max_size=9),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9)),
    st.lists(kernel_choices, max_size=3).map(tuple),
)


@given(st.lists(programs, max_size=3))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, written: list[Choices]) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    manifest = Manifest(HALF, generator_hash(), tuple(written))
    path = manifest.write(tmp_path)
    assert read_manifests(tmp_path) == [manifest]
    assert path.name == manifest.file_name


@given(st.data())
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_damaged_is_told_and_not_followed(tmp_path: Path, data: st.DataObject) -> None:
    manifest = only(CudaRowsConfig(2, 3), "cuda-rows")
    path = manifest.write(tmp_path)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.sampled_from([start + 1, len(whole)]))
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=1)) + whole[end:])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read_manifests(tmp_path)
    path.unlink()
    # Space is nothing to JSON.
    assert found == [manifest] or (
        found == []
        and [str(warning.message).partition(" are ignored: ")[0] for warning in caught]
        == [f"the choices in {path}"]
    )


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"schema": SCHEMA + 1}, f"it is of the schema {SCHEMA + 1}, not {SCHEMA}"),
        ({"generator": "?"}, "another version of the code generator made it; compile again"),
        ({"target": {}}, "KeyError: "),
        ({"target": None}, "TypeError: "),
        ({"programs": [3]}, "TypeError: "),
        ({"programs": {"a": "b"}}, "TypeError: "),
    ],
    ids=str,
)
def test_records_of_another_kind(tmp_path: Path, record: dict[str, Any], told: str) -> None:
    path = only(CudaRowsConfig(2, 3), "cuda-rows").write(tmp_path)
    changed = json.loads(path.read_text()) | record
    del changed["hash"]
    path.write_text(json.dumps(changed | {"hash": bundles._hash(changed)}))
    with pytest.warns(CacheWarning, match=f"{path.name} are ignored: {told}"):
        assert read_manifests(tmp_path) == []


@pytest.mark.parametrize("open_to_others", ["folder", "file"])
def test_what_a_stranger_could_have_written_is_not_followed(
    tmp_path: Path, open_to_others: str
) -> None:
    path = only(CudaRowsConfig(2, 3), "cuda-rows").write(tmp_path)
    (tmp_path if open_to_others == "folder" else path).chmod(0o777)
    with pytest.warns(CacheWarning, match=r"can be written by others; chmod go-w it"):
        assert read_manifests(tmp_path) == []


# -- what is loaded -------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
def test_a_bundle_is_for_its_architecture(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    saved = compile(ScanSpec(4, 2), described(tmp_path), config="cuda-step").save(folder)
    for target in ("sm_90", "h200", H100, described(tmp_path)):
        assert load_kernels(folder, target) == len(saved)
    for target in ("sm_80", "gfx942"):
        kind = named_target(target)
        with pytest.raises(ArgumentError) as caught:
            load_kernels(folder, target)
        assert str(caught.value) == (
            f"no kernel in {folder} runs on {kind}: they are for cuda:sm_90; compile for it, with "
            f"this version: pdssm-compiler compile --target {target} --output FOLDER"
        )
    # This machine has no such GPU either.
    with pytest.raises(ArgumentError, match=r"runs on cpu:\w+: they are for cuda:sm_90; compile"):
        load_kernels(folder)


@pytest.mark.usefixtures("uncompiled")
def test_a_bundle_that_lacks_a_kernel(tmp_path: Path) -> None:
    saved = compile(ScanSpec(4, 2), "h100", config="cuda-step").save(tmp_path)
    (saved[0].folder / "entry.json").unlink()
    with pytest.raises(ArgumentError) as caught:
        load_kernels(tmp_path, "sm_90")
    assert str(caught.value) == (
        f"{tmp_path} lacks 1 of the kernels that its manifest names, {saved[0].folder.name} among "
        f"them; copy the whole folder, or compile it again"
    )


@pytest.mark.usefixtures("uncompiled")
def test_a_bundle_of_another_version(tmp_path: Path) -> None:
    for saved in compile(ScanSpec(4, 2), "h100", config="cuda-step").save(tmp_path):
        key = replace(read_key(saved.folder), generator="another")
        write_entry(saved.folder, key, saved.files)
    with pytest.raises(ArgumentError, match="they are of another version of pdssm-compiler; comp"):
        load_kernels(tmp_path, "sm_90")


def test_a_described_gpu_that_nothing_compiles_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = described(tmp_path)
    path.write_text(path.read_text().replace("sm_90", "sm_11"))
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))
    with pytest.raises(BackendUnavailableError, match="sm_11"):
        compile(ScanSpec(4, 2), path, config="cuda-step")
