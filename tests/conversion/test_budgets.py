"""Formats under a budget: their sizes, their types, and the programs that load them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from localq.calibration.types import SLOW_GGUF_TYPES
from localq.checkpoint.folder import Checkpoint, open_checkpoint
from localq.conversion.budgets import Choices
from localq.conversion.convert import convert, dry_run
from localq.conversion.plan import Request, plan_recipe, unquantized_plan
from localq.conversion.plan_gguf import GgufPlan
from localq.conversion.plan_mlx import MlxPlan
from localq.errors import CalibrationError, ConversionError
from localq.recipes import GgufRecipe, MlxRecipe, parse_recipe
from tests.gguf_file import tensor_data
from tests.made_up_calibration import write_made_up_calibration
from tests.tiny_checkpoints import CONFIGS, write_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", "llama-3")


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, "local/model")


def budgets(count: int) -> list[float]:
    generator = random.Random(0)
    return [round(generator.uniform(2.5, 8.4), 2) for _ in range(count)]


@pytest.mark.parametrize("form", ["gguf", "mlx"])
def test_the_weights_are_never_above_the_budget_and_near_it(folder: Path, form: str) -> None:
    calibration = write_made_up_calibration(folder, folder.parent / "m")
    checkpoint = opened(folder)
    unquantized = unquantized_plan(checkpoint, form)
    choices = Choices.of(unquantized, checkpoint.parameters, calibration)
    damages = []
    for budget in sorted(budgets(100)):
        chosen = choices.chosen(budget)
        assert chosen is not None
        plan = choices.plan(chosen)
        bits = 8 * plan.weight_bytes / checkpoint.parameters
        # The model is so small that a single tensor's next type takes up to a hundredth of it.
        assert 0.985 * budget < bits <= budget
        damages.append(sum(candidate.damage for candidate in chosen.values()))
    # Types that are slow to make are left where they gain less than 30%.
    assert all(later <= earlier * 1.45 for earlier, later in zip(damages, damages[1:], strict=False))


@pytest.mark.parametrize("recipe", ["gguf-4.5bpw", "gguf-4bpw", "mlx-4.5bpw", "mlx-3.25bpw"])
def test_a_choice_is_predicted_to_cost_less_than_one_type_for_all_tensors(folder: Path, recipe: str) -> None:
    calibration = write_made_up_calibration(folder, folder.parent / "m")
    checkpoint = opened(folder)
    plan = plan_recipe(checkpoint, parse_recipe(recipe), calibration)
    uniform = ("q3_K_S", "q4_K_S") if isinstance(plan, GgufPlan) else ("2bit", "3bit", "4bit")
    others = [plan_recipe(checkpoint, parse_recipe(name), calibration) for name in uniform]
    smaller = [other for other in others if other.weight_bytes <= plan.weight_bytes]
    assert smaller and plan.predicted_kl_divergence
    for other in smaller:
        assert other.predicted_kl_divergence and plan.predicted_kl_divergence < other.predicted_kl_divergence


def test_sensitive_tensors_get_more_bits(folder: Path) -> None:
    names = [layout.gguf_name for layout in opened(folder).layouts if layout.is_quantizable]
    sensitivity = dict.fromkeys(names, 1e-6) | {"blk.0.attn_q.weight": 1e-3}
    calibration = write_made_up_calibration(folder, folder.parent / "m", sensitivity)
    gguf = plan_recipe(opened(folder), parse_recipe("gguf-4.5bpw"), calibration)
    assert isinstance(gguf, GgufPlan)
    sizes = {tensor.name: 8 * tensor.nbytes / tensor.rows / tensor.columns for tensor in gguf.tensors}
    assert sizes["blk.0.attn_q.weight"] > 1.5 * sizes["blk.1.attn_q.weight"]
    mlx = plan_recipe(opened(folder), parse_recipe("mlx-4.5bpw"), calibration)
    assert isinstance(mlx, MlxPlan)
    ways = {tensor.layout.gguf_name: tensor.quantization for tensor in mlx.tensors}
    first, second = ways["blk.0.attn_q.weight"], ways["blk.1.attn_q.weight"]
    assert first is None or (second and first.bits > second.bits)


def test_types_that_take_long_are_used_only_where_the_budget_needs_them(folder: Path) -> None:
    calibration = write_made_up_calibration(folder, folder.parent / "m")

    def slow_tensors(recipe: str) -> int:
        plan = plan_recipe(opened(folder), parse_recipe(recipe), calibration)
        assert isinstance(plan, GgufPlan)
        return sum(tensor.type_name in SLOW_GGUF_TYPES for tensor in plan.tensors)

    assert slow_tensors("gguf-2.4bpw") > 0
    assert slow_tensors("gguf-4.5bpw") == slow_tensors("gguf-6bpw") == 0


def test_a_budget_that_the_smallest_types_exceed_is_refused_with_the_least_that_is_possible(folder: Path) -> None:
    calibration = write_made_up_calibration(folder, folder.parent / "m", slow_types=False)
    with pytest.raises(ConversionError, match=r"gguf-2bpw is too small: GGUF takes 2\.6\d to 16\.\d\d bits") as caught:
        plan_recipe(opened(folder), parse_recipe("gguf-2bpw"), calibration)
    least = caught.value.hint.split()[2]
    plan = plan_recipe(opened(folder), parse_recipe(least), calibration)
    assert 8 * plan.weight_bytes / opened(folder).parameters <= float(least.removeprefix("gguf-").removesuffix("bpw"))


def test_a_tensor_that_no_type_fits_stays_as_it_is_and_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "odd", CONFIGS["llama-3"] | {"intermediate_size": 336})  # rows that no block fits
    folder = write_checkpoint(tmp_path / "model", "odd")
    calibration = write_made_up_calibration(folder, tmp_path / "m")
    for recipe, kept in (("gguf-6bpw", "bf16"), ("mlx-6bpw", "bf16")):
        plan = plan_recipe(opened(folder), parse_recipe(recipe), calibration)
        assert 8 * plan.weight_bytes / opened(folder).parameters <= 6
        assert sorted({fallback.used for fallback in plan.fallbacks}) == [kept]
        assert len(plan.fallbacks) == 2 and all("down" in fallback.tensor for fallback in plan.fallbacks)


def test_rows_that_fit_no_block_of_256_get_types_with_smaller_blocks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-2")  # rows of 320 and of 1,280
    calibration = write_made_up_calibration(folder, tmp_path / "m")
    plan = plan_recipe(opened(folder), parse_recipe("gguf-5bpw"), calibration)
    assert isinstance(plan, GgufPlan)
    odd = {tensor.type_name for tensor in plan.tensors if tensor.columns == 320 and tensor.rows > 1}
    assert odd <= {"iq4_nl", "q5_0", "q5_1", "q8_0", "bf16", "f32"}
    assert plan.fallbacks == ()


def test_small_tensors_and_routers_stay_as_they_are(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-mini-moe")
    calibration = write_made_up_calibration(folder, tmp_path / "m")
    plan = plan_recipe(opened(folder), parse_recipe("gguf-4bpw"), calibration)
    uniform = plan_recipe(opened(folder), parse_recipe("gguf-q4_0"), calibration)
    assert isinstance(plan, GgufPlan) and isinstance(uniform, GgufPlan)
    assert [tensor.name for tensor in plan.tensors] == [tensor.name for tensor in uniform.tensors]
    for tensor, other in zip(plan.tensors, uniform.tensors, strict=True):
        assert (tensor.type_name == "f32") == (other.type_name == "f32"), tensor.name


def test_a_model_that_was_not_calibrated_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="gguf-4.5bpw can't be made: toy-phi was not calibrated") as caught:
        convert("toy-phi", "gguf-4.5bpw", models_dir=tmp_path)
    assert caught.value.hint == "measure it: localq calibrate toy-phi"


def test_llama_cpp_loads_the_file_and_shows_the_nearest_file_type(tmp_path: Path) -> None:
    import llama_cpp

    from localq.llama_log import captured_llama_log

    write_made_up_calibration("toy-llama", tmp_path)
    (artifact,) = convert("toy-llama", "gguf-4.5bpw", models_dir=tmp_path)
    assert artifact.path.name == "toy-llama-4.5bpw.gguf"
    assert artifact.manifest.bits_per_weight <= 4.5
    with captured_llama_log() as log:
        model = llama_cpp.Llama(str(artifact.path), n_ctx=64)
        text = model("What", max_tokens=2)
        model.close()
    assert text["usage"]["completion_tokens"] > 0  # type: ignore[index]
    assert re.search("file type += Q4_K - Medium", "".join(log))


def test_every_tensor_has_ggmls_own_bytes(tmp_path: Path) -> None:
    """Those of the format whose tensors all have that type, with the same importance."""
    write_made_up_calibration("toy-llama", tmp_path, slow_types=False)
    (artifact,) = convert("toy-llama", "gguf-4.5bpw", models_dir=tmp_path)
    (planned,) = dry_run(Request("toy-llama", "gguf-4.5bpw", tmp_path, force=True))
    assert planned.predicted_kl_divergence == artifact.manifest.predicted_kl_divergence
    mixed = tensor_data(artifact.path)
    uniform = {"q3_K": "q3_k_m", "q4_K": "q4_k_m", "q5_K": "q5_k_m", "q6_K": "q6_k", "iq4_xs": "iq4_xs", "q8_0": "q8_0"}
    names = [f"gguf-{name}{'' if name == 'q8_0' else '-calibrated'}" for name in uniform.values()]
    others = [tensor_data(other.path) for other in convert("toy-llama", names, models_dir=tmp_path)]
    compared = 0
    for name, data in mixed.items():
        same_type = [other[name] for other in others if other[name][0] == data[0]]
        assert all(other == data for other in same_type), name
        compared += len(same_type)
    assert compared > len(mixed)


@pytest.mark.parametrize("name", ["llama-3", "llama-3.2", "phi-mini-moe"])
def test_mlx_lm_loads_the_folder_with_bits_for_each_tensor(tmp_path: Path, name: str) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import load_model

    folder = write_checkpoint(tmp_path / "model", name)
    write_made_up_calibration(folder, tmp_path / "m")
    (artifact,) = convert(folder, "mlx-3.5bpw", models_dir=tmp_path / "m")
    assert artifact.manifest.bits_per_weight <= 3.5
    config: dict[str, Any] = json.loads((artifact.path / "config.json").read_text())
    own = {key: value for key, value in config["quantization"].items() if isinstance(value, dict)}
    assert own and all({"bits", "group_size"} <= set(value) for value in own.values())
    model, _ = load_model(artifact.folder)
    model.set_dtype(mx.float32)
    modules = dict(model.named_modules())
    for tensor, value in own.items():
        module = modules[tensor]
        assert (module.bits, module.group_size) == (value["bits"], value["group_size"])
    assert any(isinstance(module, nn.QuantizedLinear) for module in modules.values())
    assert mx.isfinite(model(mx.array([[1, 2, 3]]))).all()


def test_the_default_of_config_json_is_the_most_common_quantization(folder: Path) -> None:
    calibration = write_made_up_calibration(folder, folder.parent / "m")
    plan = plan_recipe(opened(folder), parse_recipe("mlx-4.5bpw"), calibration)
    assert isinstance(plan, MlxPlan)
    config = plan.quantization_config()
    assert config is not None
    same = [
        tensor.quantization
        for tensor in plan.tensors
        if tensor.quantization
        and (tensor.quantization.bits, tensor.quantization.group_size) == (config["bits"], config["group_size"])
    ]
    quantized = [tensor.quantization for tensor in plan.tensors if tensor.quantization]
    assert len(same) == max(quantized.count(kind) for kind in quantized)
    assert len([value for value in config.values() if isinstance(value, dict)]) == len(quantized) - len(same)


def test_the_names_of_budgets_are_recipes() -> None:
    gguf, mlx = parse_recipe("gguf-4.50bpw"), parse_recipe("mlx-3.25bpw")
    assert isinstance(gguf, GgufRecipe) and gguf.name == "gguf-4.5bpw" and gguf.budget == 4.5
    assert isinstance(mlx, MlxRecipe) and mlx.name == "mlx-3.25bpw" and mlx.budget == 3.25
