"""PP-OCR's networks: the ONNX reader beside onnxruntime, printed characters, 18,710 classes end to end."""

import math

import numpy as np
import pytest
import torch

import mvnrob
from mvnrob.evaluation import load_model, load_source
from mvnrob.jacobian import jacobian

pytest.importorskip("onnx")
pytest.importorskip("PIL")

SIGMAS = [0.05, 0.1]


def installed(name):
    from importlib.util import find_spec

    from mvnrob.models.pp_ocr import RELEASES

    if find_spec(RELEASES[name].module) is None:
        pytest.skip(f"{RELEASES[name].package} is not installed")
    return name


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["ppocr-v6", "ppocr-v4"])
def loaded(request):
    return load_model(installed(request.param))


@pytest.fixture(scope="module")
def glyphs():
    """Inputs and labels of PP-OCRv6's first 256 printed characters."""
    installed("ppocr-v6")
    pytest.importorskip("matplotlib_fontja")
    source = load_source("glyphs")
    examples = [source.read(i) for i in range(256)]
    return torch.stack([e.x for e in examples]), torch.tensor([e.label for e in examples])


def test_reader_agrees_with_onnxruntime(loaded):
    """On noise, one input and five: the graph's shape arithmetic leaves the batch free."""
    runtime = pytest.importorskip("onnxruntime")
    from mvnrob.models.pp_ocr import _path

    session = runtime.InferenceSession(_path(loaded.name), providers=["CPUExecutionProvider"])
    x = torch.rand(5, 3, 48, 56, generator=torch.Generator().manual_seed(0))
    bgr = (x.flip(1) - 0.5) / 0.5
    (want,) = session.run(None, {session.get_inputs()[0].name: bgr.numpy()})
    for batch in (x, x[:1]):
        got = loaded.model(batch).log_softmax(-1).numpy()
        # rounding of some 200 float32 operations on logs up to 40 (measured: 4e-5)
        np.testing.assert_allclose(got, np.log(want[: len(batch), 3]), atol=1e-3, rtol=0)
    assert want.shape[2] == loaded.model.num_classes == len(loaded.class_names)
    assert (loaded.model(x) < 0).any() and loaded.model(x).exp().sum(1).min() > 2  # no softmax


def test_derivatives_agree_in_both_modes_and_with_differences(loaded):
    """In float64, where a difference of 1e-6 tells: nothing of the reader rounds to float32."""
    import copy

    model = copy.deepcopy(loaded.model).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, 48, 56, generator=generator, dtype=torch.float64)
    along = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    _, forward = torch.func.jvp(model, (x,), (along,))
    classes = torch.tensor([[0, 17, 4321]])
    rows = jacobian(model, x, classes, check="raise")
    reverse = (rows[0] @ along.flatten()).double()
    torch.testing.assert_close(reverse, forward[0, classes[0]], rtol=1e-9, atol=1e-9)
    step = 1e-7  # kinks (relu, max pool) make larger ones differ
    difference = (model(x + step * along) - model(x - step * along)) / (2 * step)
    torch.testing.assert_close(difference[0, classes[0]], reverse, rtol=1e-4, atol=1e-4)


def test_reads_printed_characters(glyphs):
    x, label = glyphs
    loaded = load_model("ppocr-v6")
    with torch.no_grad():
        predicted = torch.cat([loaded.model(part) for part in x.split(64)]).argmax(1)
    assert x.min() >= 0 and x.max() == 1 and len(label.unique()) == 256
    # measured: 251 of 256; what is misread are old forms (騒 as 騷)
    assert (predicted == label).double().mean() > 0.95
    source = load_source("glyphs")
    assert [source.named(i).name for i in range(9)] == [loaded.class_names[i] for i in label[:9]]
    assert source.class_names == loaded.class_names


def test_glyphs_of_the_other_model_and_of_a_font(glyphs):
    from importlib.util import find_spec
    from pathlib import Path

    font = Path(find_spec("matplotlib_fontja").submodule_search_locations[0]) / "fonts/ipaexg.ttf"
    same = load_source(f"glyphs:ppocr-v6:{font}")
    assert same.fingerprint == load_source("glyphs").fingerprint
    installed("ppocr-v4")
    loaded, source = load_model("ppocr-v4"), load_source("glyphs:ppocr-v4")
    examples = [source.read(i) for i in range(192)]
    predicted = loaded.model(torch.stack([e.x for e in examples])).argmax(1)
    # measured: .87; a network for simplified forms
    assert sum(int(p) == e.label for p, e in zip(predicted, examples, strict=True)) > 0.8 * 192
    assert source.fingerprint != same.fingerprint


def test_bad_names_and_fonts(tmp_path):
    from mvnrob.models.glyphs import draw_glyphs
    from mvnrob.models.pp_ocr import load_pp_ocr

    with pytest.raises(ValueError, match="name must be one of ppocr-v4, ppocr-v6, got 'v6'"):
        load_pp_ocr("v6")
    installed("ppocr-v6")
    file = tmp_path / "a.ttf"
    file.write_bytes(b"no font")
    with pytest.raises(ValueError, match="font must be a font file, got .*a.ttf"):
        draw_glyphs(font=file)
    pytest.importorskip("matplotlib")
    from matplotlib.font_manager import findfont

    with pytest.raises(ValueError, match="font must have Chinese characters, got .*DejaVuSans"):
        draw_glyphs(font=findfont("DejaVu Sans"))


def by_draws(model, x, target, sigmas, count, seed):
    """Shares of draws in which the target stays on top of the network linearised at ``x``.

    A reference that shares nothing with the estimators: the 120 rows of the features' Jacobian by
    plain backward passes, normal draws of the features, all 18,710 margins of each.
    """
    leaf = x[None].clone().requires_grad_()
    features = model.features(leaf.flip(1) * 2 - 1)[0, model.place]
    rows = [torch.autograd.grad(f, leaf, retain_graph=True)[0].flatten() for f in features]
    rows = torch.stack(rows).double()
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    root = vectors * values.clamp_min(0).sqrt()
    clean = model(x[None])[0].detach()
    draws = torch.randn(count, len(rows), generator=torch.Generator().manual_seed(seed))
    moves = (draws @ root.T.float()) @ model.head.weight.T
    return [((clean + s * moves).argmax(1) == target).double().mean().item() for s in sigmas]


def test_taylor_of_18710_classes(glyphs):
    """Beside draws from the same linear model, and Monte Carlo of the network where that is right."""
    x, label = glyphs
    model = load_model("ppocr-v6").model
    at = [0, 1]  # margins of 5.0 and 10.3
    result = mvnrob.robustness(model, x[at], SIGMAS, check="raise")
    assert result.target.tolist() == label[at].tolist()
    assert result.error.max() <= 1e-3
    count = 10_000
    for column, i in enumerate(at):
        shares = by_draws(model, x[i], label[i], SIGMAS, count, seed=i)
        for s, share in enumerate(shares):
            p = result.prob[s, column].item()
            # 4 standard errors and a draw: misses in 1e-4 of all seeds
            allowed = 4 * math.sqrt(p * (1 - p) / count) + 1 / count + result.error[s, column]
            assert abs(share - p) <= allowed, (i, SIGMAS[s], share, p)
    assert 0.9 < result.prob[1, 0] < 0.99 < result.prob[1, 1]
    assert (result.n_screened > 18_000).all()
    passes = result.cost.vjp + result.cost.jvp
    assert passes.max() < 300  # of 18,710; the last layer has 120 features
    sampled = mvnrob.robustness(model, x[at], SIGMAS[0], method="mc", n_samples=64)
    assert (sampled.lower <= result.prob[0]).all() and (result.prob[0] <= sampled.upper).all()


def test_evaluates_end_to_end(glyphs, tmp_path):
    pytest.importorskip("pyarrow")
    from mvnrob.cli import FINISHED, main

    out = tmp_path / "run"
    command = [
        "evaluate",
        "--model",
        "ppocr-v6",
        "--data",
        "glyphs",
        "--limit",
        "4",
        "--chunk",
        "2",
    ]
    command += ["--sigma", "0.03,0.05", "--target", "label", "--threads", "1", "--quiet"]
    assert main([*command, "--out", str(out)]) == FINISHED
    rows = mvnrob.evaluation.Evaluation(out).table().to_pylist()
    _, label = glyphs
    assert [r["label"] for r in rows[::2]] == label[:4].tolist() == [r["target"] for r in rows[::2]]
    assert all(r["status"] in ("CONVERGED", "EXACT") and r["error"] <= 1e-3 for r in rows)
    assert all(r["prob"] > 0.9 for r in rows)
    pytest.importorskip("matplotlib")
    assert main(["report", str(out)]) == FINISHED
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert all(r["name"] in page for r in rows)


# The reader's refusals, on graphs of one node.


def one_node(tmp_path, node, opset=11):
    import onnx

    value = onnx.helper.make_tensor_value_info
    inputs = [value("x", onnx.TensorProto.FLOAT, [1, 2, 5, 4])]
    outputs = [value("y", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "g", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    onnx.save(model, tmp_path / "one.onnx")
    return tmp_path / "one.onnx"


def test_reader_refuses_what_it_does_not_know(tmp_path):
    from onnx.helper import make_node

    from mvnrob.models.onnx_reader import OnnxGraph

    def read(op, opset=11, **attributes):
        node = make_node(op, ["x"], ["y"], **attributes)
        return OnnxGraph(one_node(tmp_path, node, opset)).network("y")

    with pytest.raises(ValueError, match="operators must be among Add, .*, got Sin in 'y'"):
        read("Sin")
    with pytest.raises(ValueError, match=r"opset must be|of opset 11 or 12, got \[17\]"):
        read("Relu", opset=17)
    pool = {"kernel_shape": [2, 2], "strides": [1, 1]}
    with pytest.raises(ValueError, match="MaxPool of 'y': ceil_mode must be 0"):
        read("MaxPool", ceil_mode=1, **pool)
    with pytest.raises(ValueError, match="auto_pad must be SAME_UPPER, got SAME_LOWER"):
        read("MaxPool", auto_pad="SAME_LOWER", **pool)
    with pytest.raises(ValueError, match="MaxPool of 'y': .*dilations"):
        read("MaxPool", dilations=[2, 2], **pool)
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="Softmax must be over the last axis of 4"):
        read("Softmax", axis=1)(x)
    with pytest.raises(ValueError, match="tensor must depend on the input, got 'z'"):
        OnnxGraph(one_node(tmp_path, make_node("Relu", ["x"], ["y"]))).network("z")
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="path must be an ONNX file, got .*bad.onnx"):
        OnnxGraph(tmp_path / "bad.onnx")
    with pytest.raises(ValueError, match="path must name a file, got .*none.onnx"):
        OnnxGraph(tmp_path / "none.onnx")


@pytest.mark.parametrize("kernel, strides", [([2, 2], [1, 1]), ([3, 2], [2, 1]), ([3, 3], [2, 2])])
def test_same_upper_pads_as_onnx_says(tmp_path, kernel, strides):
    """Beside onnx's own reference implementation; the graphs above have one case of it."""
    import onnx.reference
    from onnx.helper import make_node

    from mvnrob.models.onnx_reader import OnnxGraph

    node = make_node(
        "MaxPool", ["x"], ["y"], kernel_shape=kernel, strides=strides, auto_pad="SAME_UPPER"
    )
    path = one_node(tmp_path, node)
    x = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    (want,) = onnx.reference.ReferenceEvaluator(str(path)).run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(OnnxGraph(path).network("y")(x).numpy(), want)
