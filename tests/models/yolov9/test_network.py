"""The networks against counts and outputs measured with the authors' code (specification, 6 and A)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.errors import BadInput
from models.yolov9.blocks import DFL
from models.yolov9.network import SIZES, Detect, DualDetect, Network, build, decode, fuse
from tests.models.yolov9.vectors import pseudo_random

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Vector:
    """Decoded output for the deterministic weights and image of Appendix A."""

    size: str
    class_width: int | None
    boxes: tuple[tuple[float, ...], ...]  # cx, cy, w, h at anchors 0, 63, 96, 125
    first: tuple[float, ...]  # scores of classes 0 to 3 at anchor 0
    last: tuple[float, ...]  # of classes 76 to 79 at anchor 125
    sums: tuple[float, float]  # of all box values, of all scores
    top: tuple[float, int, int]  # largest score, its class and anchor
    least: float


VECTORS = [
    Vector(
        "t", 128,
        boxes=(
            (4.3240, 3.5612, 120.3471, 120.6704),
            (27.8187, 43.4902, 121.1798, 119.5729),
            (5.8409, 5.7958, 244.5255, 246.4867),
            (75.8764, 51.2367, 485.1565, 476.4970),
        ),
        first=(0.521292, 0.517568, 0.489994, 0.445682), last=(0.523482, 0.549509, 0.506461, 0.519989),
        sums=(50564.71, 5002.641), top=(0.629069, 17, 100), least=0.343955,
    ),
    Vector(
        "t", 80,
        boxes=(
            (4.3240, 3.5612, 120.3471, 120.6704),
            (27.8187, 43.4902, 121.1798, 119.5729),
            (5.8409, 5.7958, 244.5255, 246.4867),
            (75.8764, 51.2367, 485.1565, 476.4970),
        ),
        first=(0.531628, 0.467165, 0.465428, 0.493772), last=(0.474479, 0.547712, 0.469444, 0.495404),
        sums=(50564.71, 5044.751), top=(0.605993, 54, 105), least=0.404928,
    ),
    Vector(
        "s", None,
        boxes=(
            (3.9576, 3.7358, 121.7320, 119.6187),
            (28.0512, 43.6056, 121.6894, 119.4429),
            (6.9464, 4.9136, 242.5947, 246.5088),
            (76.0995, 48.5687, 486.1137, 479.0531),
        ),
        first=(0.535204, 0.500338, 0.496885, 0.453107), last=(0.526005, 0.533175, 0.502034, 0.519746),
        sums=(50578.4, 5028.728), top=(0.614326, 46, 58), least=0.36924,
    ),
    Vector(
        "m", None,
        boxes=(
            (4.0500, 3.7215, 119.3759, 120.3108),
            (28.3444, 44.4036, 119.8218, 120.7833),
            (10.4550, 8.9733, 243.6007, 238.3013),
            (80.4159, 54.0266, 473.5967, 482.4908),
        ),
        first=(0.441675, 0.505148, 0.519977, 0.486223), last=(0.513123, 0.509807, 0.515382, 0.497384),
        sums=(50504.78, 5058.571), top=(0.592993, 62, 70), least=0.378957,
    ),
    Vector(
        "c", None,
        boxes=(
            (3.5406, 5.7189, 121.1122, 120.2000),
            (26.6034, 45.6793, 120.1626, 119.9287),
            (6.5911, 5.3007, 239.1328, 241.6729),
            (79.5530, 44.5716, 475.3978, 482.1887),
        ),
        first=(0.480439, 0.498824, 0.528224, 0.506966), last=(0.473799, 0.510328, 0.48796, 0.480573),
        sums=(50328.04, 5035.494), top=(0.620306, 33, 73), least=0.364311,
    ),
    Vector(
        "e", None,
        boxes=(
            (4.2388, 3.8951, 119.8459, 118.9333),
            (27.8041, 44.1460, 119.3789, 117.7659),
            (9.6302, 9.3119, 235.1710, 235.0155),
            (78.7129, 47.1204, 481.5042, 483.0020),
        ),
        first=(0.444983, 0.531763, 0.514418, 0.50358), last=(0.482467, 0.404204, 0.488413, 0.472352),
        sums=(50052.39, 5034.556), top=(0.618112, 34, 110), least=0.390462,
    ),
]  # fmt: skip

# layer, then mean and standard deviation of t, s, m, c
LAYERS = """
 0  0.21239  0.51485  0.18218  0.47190  0.18218  0.47190  0.20001  0.46508
 1  0.08669  0.39165  0.08039  0.35309  0.08039  0.35309  0.09273  0.37981
 2  0.07355  0.20564  0.03495  0.19100  0.02237  0.15058  0.02069  0.20060
 3  0.03226  0.14412  0.00000  0.12334  0.01360  0.10013  0.01511  0.13443
 4  0.01203  0.10622  0.00150  0.09910  0.00938  0.08564  0.00468  0.08165
 5 -0.00092  0.08664  0.00581  0.08308  0.01009  0.07504  0.00523  0.07923
 6 -0.00213  0.08625  0.00501  0.08420  0.00427  0.08000  0.00264  0.07727
 7  0.00400  0.06967  0.00489  0.07190 -0.00114  0.07164  0.01022  0.07397
 8  0.00699  0.07916  0.00880  0.07914  0.00102  0.07980  0.00476  0.08074
 9 -0.00104  0.08045  0.00441  0.07819  0.00972  0.08646  0.00517  0.07998
10 -0.00104  0.08045  0.00441  0.07819  0.00972  0.08646  0.00517  0.07998
11 -0.00151  0.08299  0.00467  0.08082  0.00738  0.08380  0.00390  0.07865
12  0.01723  0.09343  0.00589  0.08742  0.00545  0.07589  0.00371  0.08194
13  0.01723  0.09343  0.00589  0.08742  0.00545  0.07589  0.00371  0.08194
14  0.01515  0.09878  0.00413  0.09230  0.00702  0.07995  0.00420  0.08180
15 -0.00696  0.08816  0.00583  0.07963 -0.00259  0.07809  0.00127  0.08283
16  0.00916  0.07780  0.00048  0.06791  0.00077  0.07596  0.00208  0.07857
17  0.01454  0.08861  0.00409  0.08148  0.00387  0.07594  0.00317  0.08083
18  0.01685  0.09384  0.00664  0.08738 -0.00728  0.07402  0.01187  0.07762
19  0.01963  0.07381  0.00934  0.07400  0.01170  0.07121  0.00960  0.07590
20  0.00585  0.07890  0.00605  0.07685  0.01038  0.08170  0.00739  0.07800
21  0.00473  0.08177  0.00786  0.09092  0.00742  0.07527  0.00564  0.07896
"""

# the same of e; one pair an output
LAYERS_E = """
0 0.50000 0.28980
1 0.20001 0.46508
2 0.12285 0.40667
3 0.01933 0.18305
4 0.02210 0.12454
5 0.01236 0.09761
6 0.00167 0.08722
7 0.01227 0.08147
8 0.00863 0.07462
9 0.00613 0.07657
10 0.00177 0.11238
11 0.01601 0.07243 -0.00372 0.06816
12 0.00218 0.05460 -0.00324 0.06025 0.00535 0.06173
13 -0.01453 0.06143 -0.00150 0.05869 0.00467 0.06021 -0.00102 0.05769
14 0.00161 0.05677 0.00447 0.05991 0.00409 0.05845 -0.00335 0.05959 -0.00133 0.05860
15 0.19272 0.49543
16 0.19975 0.50353
17 0.15075 0.43263
18 0.14677 0.44888
19 0.05751 0.24285
20 0.02533 0.18096
21 0.03944 0.21571
22 0.00887 0.10534
23 0.01705 0.09671
24 0.01268 0.12824
25 0.00698 0.08883
26 0.00247 0.07761
27 0.00114 0.09507
28 0.00352 0.08008
29 0.01055 0.08260
30 0.01055 0.08260
31 0.00817 0.08682
32 0.00416 0.07913
33 0.00416 0.07913
34 0.00651 0.09319
35 0.02189 0.09395
36 0.01744 0.08565
37 0.00858 0.08160
38 0.00674 0.08257
39 0.00813 0.07775
40 0.00934 0.08022
41 -0.00235 0.08242
"""

# name, class width, parameters, keys, fused parameters, fused keys, layers
COUNTS = [
    ("gelan-t", None, 2_442_640, 1339, 2_407_632, 371, 23),
    ("gelan-t", 80, 2_036_560, 1339, 2_001_840, 371, 23),
    ("gelan-s", None, 7_226_208, 1339, 7_105_888, 371, 23),
    ("gelan-m", None, 20_124_000, 907, 19_978_672, 279, 23),
    ("gelan-c", None, 25_498_752, 937, 25_288_768, 289, 23),
    ("gelan-e", None, 58_114_432, 1811, 57_345_920, 523, 43),
    ("yolov9-t", None, 3_717_680, 1772, 3_674_576, 500, 30),
    ("yolov9-s", None, 9_804_512, 1772, 9_659_168, 500, 30),
    ("yolov9-m", None, 32_878_432, 1412, 32_667_400, 444, 39),
    ("yolov9-c", None, 51_182_080, 1460, 50_880_768, 460, 39),
    ("yolov9-e", None, 69_529_664, 2172, 68_669_632, 636, 50),
]
IDS = [f"{v.size}-{v.class_width or 'default'}" for v in VECTORS]

# Layers of the training forms that only feed the auxiliary head.
AUXILIARY = {
    "t": range(22, 29), "s": range(22, 29), "m": range(23, 38), "c": range(23, 38), "e": range(29, 36),
}  # fmt: skip


class TestStructure:
    @pytest.mark.parametrize(("name", "width", "parameters", "keys", "fused", "fused_keys", "layers"), COUNTS)
    def test_counts(self, name, width, parameters, keys, fused, fused_keys, layers):
        with torch.device("meta"):
            network = build(name, class_width=width)
            assert (_parameters(network), len(network.state_dict())) == (parameters, keys)
            assert len(network.model) == layers
            fuse(network)
            assert (_parameters(network), len(network.state_dict())) == (fused, fused_keys)

    def test_batch_norm_constants(self):
        norms = [m for m in build("yolov9-t").modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}

    def test_m_has_184_channels_at_layer_16(self):
        assert build("gelan-m").state_dict()["model.16.cv1.conv.weight"].shape[0] == 184

    def test_unknown_names_and_counts_are_refused(self):
        with pytest.raises(BadInput, match=r"gelan-x.*gelan-t"):
            build("gelan-x")
        with pytest.raises(BadInput, match="at least one class"):
            build("gelan-t", classes=0)


class TestVectors:
    @pytest.mark.parametrize("vector", VECTORS, ids=IDS)
    def test_output(self, vector):
        y = _outputs(vector.size, vector.class_width)[-1][0]
        assert y.shape == (84, 126)
        assert torch.allclose(y[:4, [0, 63, 96, 125]].T, torch.tensor(vector.boxes), atol=1e-3, rtol=0)
        assert torch.allclose(y[4:8, 0], torch.tensor(vector.first), atol=1e-5, rtol=0)
        assert torch.allclose(y[80:, 125], torch.tensor(vector.last), atol=1e-5, rtol=0)
        scores = y[4:]
        score, cls, anchor = vector.top
        assert scores.argmax() == cls * 126 + anchor
        assert float(scores.max()) == pytest.approx(score, abs=1e-5)
        assert float(scores.min()) == pytest.approx(vector.least, abs=1e-5)
        assert float(y[:4].abs().sum()) == pytest.approx(vector.sums[0], abs=0.1)
        assert float(scores.sum()) == pytest.approx(vector.sums[1], abs=0.01)

    @pytest.mark.parametrize("size", "tsmc")
    def test_layers(self, size):
        column = 1 + 2 * "tsmc".index(size)
        for row in (line.split() for line in LAYERS.strip().splitlines()):
            _assert_moments(_outputs(size, None)[int(row[0])], row[column : column + 2], f"layer {row[0]}")

    def test_layers_of_e(self):
        for row in (line.split() for line in LAYERS_E.strip().splitlines()):
            output = _outputs("e", None)[int(row[0])]
            parts = output if isinstance(output, tuple) else (output,)
            assert len(row) == 1 + 2 * len(parts)
            for k, part in enumerate(parts):
                _assert_moments(part, row[1 + 2 * k : 3 + 2 * k], f"layer {row[0]}")

    @pytest.mark.parametrize("size", SIZES)
    def test_fused_equals_unfused(self, size):
        width = 80 if size == "t" else None
        fused = fuse(deepcopy(_network(size, width)))
        with torch.inference_mode():
            y = fused(_image())
        assert torch.allclose(y, _outputs(size, width)[-1], atol=1e-4, rtol=0)


class TestHead:
    def test_equal_logits_are_seven_and_a_half_strides_on_every_side(self):
        maps = [torch.zeros(1, 144, 8 // s, 12 // s) for s in (1, 2, 4)]
        y = decode(maps, DFL())
        assert torch.allclose(y[0, :4, 0], torch.tensor([4.0, 4.0, 120.0, 120.0]))
        assert torch.allclose(y[0, :4, 96], torch.tensor([8.0, 8.0, 240.0, 240.0]))
        assert (y[:, 4:] == 0.5).all()

    def test_bins_are_side_major(self):
        maps = [torch.zeros(1, 65, 1, 1) for _ in range(3)]
        for side, distance in enumerate((1, 2, 3, 4)):
            maps[0][0, side * 16 + distance] = 100.0
        # left 1, top 2, right 3, bottom 4 strides of 8 around (0.5, 0.5)
        assert torch.allclose(decode(maps, DFL())[0, :4, 0], torch.tensor([12.0, 12.0, 32.0, 48.0]))

    def test_box_tower_has_one_group_a_side(self):
        network = build("gelan-t", classes=2)
        tower = network.head.cv2[0]
        assert (tower[1].conv.groups, tower[2].groups, network.head.cv3[0][1].conv.groups) == (4, 4, 1)
        tower.eval()
        x = torch.randn(1, 64, 4, 4)
        with torch.no_grad():
            before = tower(x)
            tower[1].conv.weight[16:32] += 1.0  # the second group: the top side
            changed = (tower(x) - before).abs().amax((0, 2, 3)) > 0
        assert changed.nonzero().flatten().tolist() == list(range(16, 32))

    def test_class_width_follows_the_code_unless_given(self):
        widths = [build("gelan-t", n).state_dict()["model.22.cv3.0.0.conv.weight"].shape[0] for n in (3, 40, 80)]
        assert widths == [64, 80, 128]


class TestTrainingForm:
    @pytest.mark.parametrize("size", "tm")
    def test_train_mode_gives_auxiliary_and_main_maps(self, size):
        network = build(f"yolov9-{size}", classes=3).eval()
        x = torch.rand(1, 3, 64, 96)
        with torch.inference_mode():
            expected = network(x)
            network.train()
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            auxiliary, main = network(x)
        shapes = [(1, 67, 8, 12), (1, 67, 4, 6), (1, 67, 2, 3)]
        assert [tuple(m.shape) for m in auxiliary] == [tuple(m.shape) for m in main] == shapes
        head = network.head
        assert isinstance(head, DualDetect)
        assert torch.equal(decode(main, head.dfl2), expected)
        assert not torch.equal(decode(auxiliary, head.dfl), expected)

    @pytest.mark.parametrize("size", "tm")
    def test_eval_skips_the_auxiliary_layers(self, size):
        network = build(f"yolov9-{size}", classes=1).eval()
        run: list[int] = []
        for i, layer in enumerate(network.model):
            layer.register_forward_hook(lambda *_, i=i: run.append(i))
        with torch.inference_mode():
            network(torch.rand(1, 3, 32, 32))
        assert run == [i for i in range(len(network.model)) if i not in AUXILIARY[size]]
        run.clear()
        with torch.inference_mode():
            network.train()(torch.rand(2, 3, 64, 64))
        assert run == list(range(len(network.model)))

    @pytest.mark.parametrize("size", "ce")
    def test_eval_layers_of_the_large_sizes(self, size):
        with torch.device("meta"):
            network = build(f"yolov9-{size}")
        assert network.eval_layers == set(range(len(network.model))) - set(AUXILIARY[size])

    def test_inference_form_gives_maps_in_train_mode(self):
        network = build("gelan-t", classes=2, training=True)
        assert network.training and isinstance(network.head, Detect)
        assert [tuple(m.shape) for m in network(torch.rand(2, 3, 64, 64))] == [(2, 66, n, n) for n in (8, 4, 2)]


def _assert_moments(output: Tensor, expected: list[str], label: str) -> None:
    mean, deviation = (float(x) for x in expected)
    assert float(output.mean()) == pytest.approx(mean, abs=2e-5), label
    assert float(output.std(correction=0)) == pytest.approx(deviation, abs=2e-5), label


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@cache
def _network(size: str, class_width: int | None) -> Network:
    """The inference network with the weights of Appendix A."""
    with torch.device("meta"):
        network = build(f"gelan-{size}", class_width=class_width)
    state = network.state_dict()
    filled = {key: _filled(key, state[key].shape, j) for j, key in enumerate(sorted(state))}
    network.load_state_dict(filled, assign=True)
    return network.eval()


@cache
def _outputs(size: str, class_width: int | None) -> list[Tensor | tuple[Tensor, ...]]:
    """Output of every layer for the image of Appendix A; the last one is the network's."""
    network, outputs = _network(size, class_width), []
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in network.model]
    with torch.inference_mode():
        network(_image())
    for hook in hooks:
        hook.remove()
    return outputs


def _filled(key: str, shape: torch.Size, j: int) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    if ".dfl" in key:
        return torch.arange(16.0).view(shape)
    u = pseudo_random(shape.numel(), j)
    if len(shape) == 4:
        last = ".cv2." in key or ".cv3." in key
        last = last and key.split(".")[1] in ("22", "42") and key.endswith(".2.weight")
        values = (3.0 if last else 0.28) * u / np.sqrt(shape[1:].numel())
    elif key.endswith("running_var"):
        values = 0.01 * (1.5 + u)
    elif key.endswith("running_mean"):
        values = 0.02 * u
    elif key.endswith("bn.weight"):
        values = 1 + 0.1 * u
    else:
        values = 0.1 * u
    return torch.from_numpy(values.astype(np.float32)).view(shape)


def _image() -> Tensor:
    n = torch.arange(3 * 64 * 96)
    return ((7919 * n) % 256).float().div(255).view(1, 3, 64, 96)
