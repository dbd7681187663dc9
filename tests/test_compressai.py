# SPDX-License-Identifier: MIT
"""compressai's zoo, command lines, checkpoints and models, with ours among them."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import compressai.zoo
import pytest
import torch
from compressai.losses import RateDistortionLoss
from compressai.models import Elic2022Official
from compressai.optimizers import net_aux_optimizer
from compressai.registry import MODELS, MODULES
from compressai.zoo import image as image_zoo
from conftest import picture
from PIL import Image
from torchvision.transforms.functional import to_tensor

import groupedmixer.compressai
from groupedmixer import (
    CONFIGS,
    Config,
    GroupedMixer,
    GroupedMixerLatentCodec,
    get_config,
    load_model,
)
from groupedmixer.config import NUM_LEVELS

NAMES = [f"groupedmixer-{name}" for name in CONFIGS]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For small tensors; compressai's eval_model sets it, too, for the whole process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- names -----------------------------------------------------------------------------------


def test_registries_know_our_classes() -> None:
    assert MODELS["groupedmixer"] is GroupedMixer
    assert MODULES["GroupedMixerLatentCodec"] is GroupedMixerLatentCodec


@pytest.mark.parametrize("name", NAMES)
def test_zoo_knows_our_names(name: str) -> None:
    assert compressai.zoo.models[name] is compressai.zoo.image_models[name]
    assert sorted(image_zoo.cfgs[name]) == list(range(1, NUM_LEVELS + 1))
    (config,) = image_zoo.cfgs[name][1]
    assert config == CONFIGS[name.removeprefix("groupedmixer-")]


def test_names_survive_a_second_registration() -> None:
    before = list(compressai.zoo.image_models)
    groupedmixer.compressai.register()
    assert list(compressai.zoo.image_models) == before


@pytest.mark.slow  # the fast tests have two orders: this file's and that of the command
@pytest.mark.parametrize(
    "imports",
    [
        "import groupedmixer.compressai, compressai",
        "import compressai.zoo, groupedmixer",
        "import groupedmixer.latent_codec",  # imports compressai, which imports its zoo
    ],
)
def test_names_are_there_in_every_order_of_imports(imports: str) -> None:
    program = (
        f"{imports}\n"
        "from compressai.zoo import image_models\n"
        "print(image_models['groupedmixer-tiny'](3).quality)"
    )
    assert float(run("-c", program).stdout) == 2


def test_importing_groupedmixer_does_not_import_compressai() -> None:
    program = (
        "import sys, groupedmixer.compressai\n"
        "print(*({'compressai', 'torch', 'numpy'} & set(sys.modules)))"
    )
    assert run("-c", program).stdout.split() == []


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


# ---- models of the zoo -----------------------------------------------------------------------


def test_zoo_makes_models() -> None:
    function = compressai.zoo.image_models["groupedmixer-tiny"]
    model = function(quality=3, metric="mse", pretrained=False, progress=False)
    assert isinstance(model, GroupedMixer) and model.config == get_config("tiny")
    assert model.quality == 2
    assert function(NUM_LEVELS).quality == NUM_LEVELS - 1 and function(1.5).quality == 0.5
    assert pickle.loads(pickle.dumps(function))(3).quality == 2


def test_zoo_makes_models_with_weights() -> None:
    model = compressai.zoo.image_models["groupedmixer-rt"](quality=8, pretrained=True)
    assert not model.training and model.quality == NUM_LEVELS - 1
    expected = load_model("rt").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tiny", {"quality": 0}, r"quality must be in 1\.\.8, got 0"),
        ("tiny", {"quality": 9}, r"quality must be in 1\.\.8, got 9"),
        ("tiny", {"quality": 1, "metric": "ms-ssim"}, "metric must be 'mse', got 'ms-ssim'"),
        ("large", {"quality": 1, "pretrained": True}, "there are none for 'large' yet"),
    ],
)
def test_zoo_refuses(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compressai.zoo.image_models[f"groupedmixer-{name}"](**arguments)


# ---- command lines ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures whose sides are multiples of 64: compressai pads others with black."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(2):
        picture(192, 256, seed).save(folder / f"{seed}.png")
    return folder


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., dict[str, list[float]]]]:
    """Runs compressai's eval_model in this process, and gives its results."""
    deterministic = torch.backends.cudnn.deterministic
    monkeypatch.setattr(sys, "argv", list(sys.argv))

    def call(*arguments: str) -> dict[str, list[float]]:
        assert groupedmixer.compressai.main(["eval_model", *arguments]) == 0
        results: dict[str, list[float]] = json.loads(capsys.readouterr().out)["results"]
        return results

    yield call
    torch.backends.cudnn.deterministic = deterministic  # eval_model sets it on import


def bits_per_pixel(model: GroupedMixer, folder: Path) -> float:
    """Mean over the pictures of what `compress` makes, in compressai's way of counting."""
    values = []
    for path in sorted(folder.iterdir()):
        x = to_tensor(Image.open(path))[None]
        strings = model.compress(x)["strings"]
        values.append(8 * sum(len(tile[0]) for tile in strings) / x[0, 0].numel())
    return sum(values) / len(values)


def test_eval_model_of_bundled_weights(pictures: Path, evaluate: Callable[..., Any]) -> None:
    results = evaluate("pretrained", str(pictures), "-a", "groupedmixer-rt", "-q", "2,7")
    model = load_model("rt")
    for quality, bpp in zip((2, 7), results["bpp"], strict=True):
        model.quality = quality - 1
        assert bpp == pytest.approx(bits_per_pixel(model, pictures))
    assert results["bpp"][0] < results["bpp"][1]
    assert results["psnr-rgb"][0] < results["psnr-rgb"][1]
    estimated = evaluate(
        "pretrained", str(pictures), "-a", "groupedmixer-rt", "-q", "2,7", "--entropy-estimation"
    )
    assert estimated["psnr-rgb"] == pytest.approx(results["psnr-rgb"], abs=0.01)
    # the streams' heads and coder states, and tables in 4096ths
    assert estimated["bpp"] == pytest.approx(results["bpp"], rel=0.1, abs=0.05)


def test_eval_model_as_a_command(pictures: Path, tmp_path: Path) -> None:
    run(
        *("-m", "groupedmixer.compressai", "eval_model", "pretrained", str(pictures)),
        *("-a", "groupedmixer-rt", "-q", "4", "-d", str(tmp_path), "-o", "report", "--per-image"),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["name"] == "groupedmixer-rt-mse" and report["results"]["bpp"][0] > 0
    assert len(list(tmp_path.glob("[01]-groupedmixer-rt-mse-4-ans.json"))) == 2


def test_commands_that_are_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert groupedmixer.compressai.main(["bench"]) == 2
    assert "must be one of eval_model, update_model, got 'bench'" in capsys.readouterr().err
    assert groupedmixer.compressai.main([]) == 2
    assert "got none" in capsys.readouterr().err
    assert groupedmixer.compressai.main(["--help"]) == 0
    assert "eval_model" in capsys.readouterr().out


# ---- checkpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["training", "plain", "updated"])
def test_eval_model_of_a_checkpoint(
    style: str,
    tiny_model: GroupedMixer,
    pictures: Path,
    tmp_path: Path,
    evaluate: Callable[..., Any],
) -> None:
    """As compressai's example of training saves them, as a bare state dict, after `update`."""
    model = copy.deepcopy(tiny_model)
    if style == "updated":
        assert model.update(force=True)
    state = model.state_dict()
    path = tmp_path / "mine.pth.tar"
    torch.save({"epoch": 3, "state_dict": state} if style == "training" else state, path)
    results = evaluate("checkpoint", str(pictures), "-a", "groupedmixer-tiny", "-p", str(path))
    assert results["bpp"] == [pytest.approx(bits_per_pixel(tiny_model, pictures))]


def test_update_model(
    tiny_model: GroupedMixer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a model trained with DataParallel; a second update changes nothing."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    state = {f"module.{name}": value for name, value in tiny_model.state_dict().items()}
    path = tmp_path / "mine.pth.tar"
    torch.save({"state_dict": state}, path)
    arguments = ("-a", "groupedmixer-tiny", "-d", str(tmp_path / "updated"))
    assert groupedmixer.compressai.main(["update_model", str(path), *arguments]) == 0
    (updated,) = (tmp_path / "updated").iterdir()
    model = GroupedMixer.from_state_dict(torch.load(updated)).eval()
    assert not model.latent_codec.z_tables.empty and not model.update(force=True)
    x = torch.rand(1, 3, 64, 64)
    coded = model.compress(x)
    assert coded["strings"] == tiny_model.compress(x)["strings"]

    loaded = GroupedMixer(get_config("tiny")).eval()
    loaded.load_state_dict(torch.load(updated))
    assert torch.equal(loaded.decompress(**coded)["x_hat"], model.decompress(**coded)["x_hat"])


# ---- models of compressai with our entropy model ----------------------------------------------


def elic(config: Config) -> Elic2022Official:
    """ELIC, small, with our latent codec in place of its own."""
    channels = config.latent_channels
    model = Elic2022Official(N=16, M=channels, groups=[channels // 2, channels // 2])
    model.latent_codec = GroupedMixerLatentCodec(config)
    return model


def test_our_latent_codec_in_elic(tmp_path: Path) -> None:
    """Trained, saved, loaded: the loaded codec reads what the saved one wrote, bit for bit."""
    torch.manual_seed(0)
    config = get_config("tiny")
    model = elic(config).train()
    optimizers = net_aux_optimizer(
        model, {"net": {"type": "Adam", "lr": 1e-3}, "aux": {"type": "Adam", "lr": 1e-3}}
    )
    criterion = RateDistortionLoss(lmbda=0.01)
    before = {name: value.clone() for name, value in model.named_parameters()}
    x = torch.rand(2, 3, 64, 96)
    for _ in range(3):
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        criterion(model(x), x)["loss"].backward()
        optimizers["net"].step()
        model.aux_loss().backward()
        optimizers["aux"].step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    # the biases of keys move every logit of a softmax alike: no gradient, in theory and here
    assert not [name for name in still if not name.startswith("latent_codec.")]
    assert {"latent_codec.gain", "latent_codec.context.start"}.isdisjoint(still)

    model.eval()
    model.latent_codec.update()
    path = tmp_path / "elic.pth.tar"
    torch.save(model.state_dict(), path)
    loaded = elic(config).eval()
    loaded.load_state_dict(torch.load(path))
    with torch.no_grad():
        for quality in (0.0, 5.5):
            model.latent_codec.quality = quality
            coded = model.compress(x)
            decoded = loaded.decompress(coded["strings"], coded["shape"])["x_hat"]
            assert torch.equal(decoded, model.decompress(**coded)["x_hat"])
            y_hat = loaded.latent_codec.decompress(coded["strings"], coded["shape"])["y_hat"]
            assert torch.equal(y_hat, coded["y_hat"])


def test_compressais_update_leaves_our_tables_alone() -> None:
    """`update` of a model of compressai's does not know ours: `latent_codec.update` builds them."""
    model = elic(get_config("tiny")).eval()
    model.update(force=True)
    assert model.latent_codec.z_tables.empty
    assert model.latent_codec.update() and not model.latent_codec.z_tables.empty


@pytest.mark.parametrize("how", ["autocast", pytest.param("compile", marks=pytest.mark.slow)])
def test_training_form_under_autocast_and_compile(how: str) -> None:
    codec = GroupedMixerLatentCodec(get_config("tiny"))
    y = torch.randn(2, codec.config.latent_channels, 4, 6)
    forward = torch.compile(codec, backend="aot_eager") if how == "compile" else codec
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out = forward(y)
        rate = sum(-values.log2().sum() for values in out["likelihoods"].values())
    rate.backward()
    assert all(values.dtype == torch.float32 for values in out["likelihoods"].values())
    assert codec.context.start.grad.isfinite().all() and codec.gain.grad.any()
