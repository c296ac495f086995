"""Recipes: what is wrong is said with file, key, expectation and the nearest known name."""

from __future__ import annotations

import pytest

from edgegen.errors import EdgegenError, RecipeError
from edgegen.library import find_recipe
from edgegen.plan import make_plan
from edgegen.recipe import apply_settings, load_recipe, recipe_to_json
from tests.tiny import RECIPE, write_tiny


def replaced(tmp_path, old, new):
    path = write_tiny(tmp_path)
    assert old in RECIPE
    path.write_text(RECIPE.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "schema 2, this edgegen reads schema 1"),
        ("schema = 1", "schema = 'one'", r"Expected `int`, got `str` - at `schema`"),
        ("schema = 1\n", "", "missing required field `schema`"),
        ('name = "tiny"', 'name = "Tiny Model"', "matching regex"),
        ("[process]", "[proces]", r"unknown key 'proces' in the top level: did you mean 'process'"),
        ("prediction =", "predictoin =", r"unknown key 'predictoin' in model: did you mean 'prediction'\?"),
        ("solver = \"dpmpp_2m\"", "solvers = 'x'", r"unknown key 'solvers' in programs\[0\]: did you mean 'solver'"),
        ("default = 1", "defualt = 1", "unknown key 'defualt' in conditions"),
        ('sample_shape = [1, 8, 8]', "sample_shape = [1, 0, 8]", "Expected `int` >= 1"),
        ('sample_shape = [1, 8, 8]', "sample_shape = 'small'", "model.sample_shape"),
        ('sample_shape = [1, 8, 8]', "sample_shape = [2, 8, 8]", r"an image sample has shape \[1 or 3, height, width\]"),
        ("steps = [4, 2]", "steps = []", "length >= 1"),
        ("steps = [4, 2]", "steps = [4, 4]", "name one count twice"),
        ("steps = [4, 2]", "steps = [0]", "Expected `int` >= 1"),
        ("psnr_db = 20.0", "psnr_db = nan", "gate.psnr_db is nan"),
        ("null = 4\n", "", "uses guidance, so one condition needs `null`"),
        ("minimum = 0", "minimum = 7", "minimum 7.0 is above maximum 3.0"),
        ("[conditions.label]", "[conditions.seed]", "generate\\(\\) has an argument of that name"),
        ('name = "vp_linear"', "", r"\[process\] needs a name"),
        ("rules = []", "precisions = ['int4']", "quantization.precisions: did you mean 'int8'"),
        ("rules = []", "rules = ['lst']", "quantization.rules: did you mean 'last'"),
        ("schema = 1", "schema = = 1", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_malformed_recipe_says_what_is_wrong(tmp_path, old, new, message):
    path = replaced(tmp_path, old, new)
    with pytest.raises(RecipeError, match=message) as e:
        load_recipe(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('solver = "ddim"', 'solver = "dimm"', r"programs\[1\], 3 steps: no solver 'dimm': did you mean 'ddim'"),
        ("eta = 1.0", "etta = 1.0", "has no option 'etta': did you mean 'eta'"),
        ('name = "vp_linear"', 'name = "vp_lin"', "no process 'vp_lin': did you mean 'vp_linear'"),
        ('name = "vp_linear"', 'name = "vp_linear"\nbeta_maks = 3', "did you mean 'beta_max'"),
        ('prediction = "sample"', 'prediction = "eps"', "no prediction 'eps'"),
        ("steps = [4, 2]", "steps = [4]\ngrid = 'lamda'", "did you mean 'lambda'"),
        ('source = "tiny.onnx"', 'source = "absent.onnx"', "no file at"),
        ('source = "tiny.onnx"', 'source = "recipe.toml"', "expected 'file.py:function' or 'file.onnx'"),
        ('source = "tiny.onnx"', 'source = "tiny.onnx"\nweights = "none.safetensors"', "model.weights: no file at"),
        ("samples = 4", "samples = 4\nset = 'deploid'", "no calibration set 'deploid': did you mean 'deployed'"),
        ("[gate]", "[target]\nengine = 'tensorrt'\n[gate]", "builds for 'onnxruntime'"),
    ],
)
def test_what_cannot_be_built_is_refused_before_slow_work(tmp_path, old, new, message):
    path = replaced(tmp_path, old, new)
    with pytest.raises(EdgegenError, match=message):
        make_plan(load_recipe(path), tmp_path)


def test_a_pickle_needs_trust(tmp_path):
    path = replaced(tmp_path, 'source = "tiny.onnx"', 'source = "tiny.onnx"\nweights = "w.pth"')
    (tmp_path / "w.pth").write_bytes(b"x")
    with pytest.raises(EdgegenError, match="--trust-pickle"):
        make_plan(load_recipe(path), tmp_path)
    assert make_plan(load_recipe(path), tmp_path, trust_pickle=True).trusted_pickle


def test_settings_override_typed_values_and_list_entries(tmp_path):
    path = write_tiny(tmp_path)
    recipe = load_recipe(
        path, ["gate.psnr_db=30", "programs.0.steps=[7]", "model.weights=some path.bin", "quantization.keep=['a*']", "summary=x = y"]
    )
    assert recipe.gate.psnr_db == 30
    assert recipe.programs[0].steps == (7,)
    assert recipe.model.weights == "some path.bin"
    assert recipe.quantization.keep == ("a*",)
    assert recipe.summary == "x = y"


@pytest.mark.parametrize("setting", ["gate", "=3", "a..b=1", "name.x=1", "programs.9.steps=[1]", "programs.x.steps=[1]"])
def test_bad_settings_are_refused(setting):
    with pytest.raises(RecipeError, match="--set"):
        apply_settings({"name": "n", "programs": [{}]}, [setting])


def test_settings_with_unknown_keys_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="unknown key 'psnr' in gate: did you mean 'psnr_db'"):
        load_recipe(write_tiny(tmp_path), ["gate.psnr=30"])


def test_absent_and_unreadable_recipes(tmp_path):
    with pytest.raises(RecipeError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bin.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8"):
        load_recipe(tmp_path / "bin.toml")


def test_families_are_found_by_name_and_unknown_ones_list_the_nearest():
    assert find_recipe("digits").name == "recipe.toml"
    with pytest.raises(RecipeError, match="did you mean 'digits'"):
        find_recipe("digit")


def test_the_resolved_recipe_is_canonical_json(tmp_path):
    from edgegen import canonical

    value = recipe_to_json(load_recipe(write_tiny(tmp_path)))
    assert value["gate"]["psnr_db"] == (20.0).hex()
    assert canonical.decode(canonical.encode(value)) == value
