"""jac_cov and jac_cov_norms beside the unfused PyTorch form: time and error.

python -m bench jac_cov [--cases 10x3072,1000x150528/3072] [--dtypes float32] [--threads 1]
                              [--device cuda] [--budget SECONDS]

The peer takes differences, norms, quotients and one bmm over the full square, in J's dtype (float32
for bfloat16). A case CxD/CHUNK goes through jac_cov_accumulate in chunks of CHUNK columns (the peer
adds bmm's of the differences), each chunk the same data, so that it fits in memory. Both sides are
checked against float64 before they are timed. GFLOP/s counts useful work, C (C + 1) D, for both;
GB/s counts J read once. Times are per problem: processor time with one thread, else wall time; our
runs and the peer's alternate. On a GPU: device time, L2 cache flushed before each call, and the peer
a second time with TF32 allowed in its products, with the error that it then has; beside our time the
floor for this device and the share of it that was reached (bench/cuda_shares.py).
"""

import statistics
import sys
import time

from bench import cuda_environment, cuda_shares, cuda_timing, harness

# Several times what the tests allow: a wrong result prints no time.
WORST = {"float32": 8e-6, "float64": 1e-12, "bfloat16": 8e-6}
COLUMNS = ["op", "C", "D", "chunk", "B", "dtype", "ms", "spread", "rate", "unit", "error",
           "peer_ms", "peer_spread", "peer_error", "speedup"]  # fmt: skip
CUDA_COLUMNS = [*COLUMNS, "tf32_ms", "tf32_error", "tf32_speedup"]
FLOOR_COLUMNS = ["floor_ms", "limiter", "share"]


def measure(ours, peer, threads, repeats):
    """Median milliseconds and spread (largest over smallest) of both."""
    now = time.process_time if threads == 1 else time.perf_counter
    times = ([], [])
    for run in range(repeats + 1):
        for call, out in zip((ours, peer), times, strict=True):
            start = now()
            call()
            if run:  # the first round warms up
                out.append((now() - start) * 1e3)
    return [(statistics.median(t), max(t) / min(t)) for t in times]


def measure_cuda(call, device, seconds):
    """Median milliseconds and spread (third over first quartile) on a GPU."""
    timing, _ = cuda_timing.measure(call, device, budget_s=seconds)
    return 1e3 * timing["median_s"], timing["q3_s"] / timing["q1_s"]


class Wrong(RuntimeError):
    """A result that must not be timed."""


class Case:
    """Inputs of one size; the two sides of each comparison as methods."""

    def __init__(self, text, dtype_name, device):
        import torch

        size, _, chunk = text.partition("/")
        self.text, self.dtype = text, dtype_name
        self.C, self.D = (int(x) for x in size.split("x"))
        self.chunk = int(chunk) if chunk else None
        width = self.chunk or self.D
        self.device = torch.device(device)
        on_gpu = self.device.type == "cuda"
        # As many problems as fill the device: two gigabytes of J in float32, and as much for the peer.
        most, elements = (65536, 500_000_000) if on_gpu else (256, 8_000_000)
        self.B = max(1, min(most, elements // (self.C * width)))
        dtype = getattr(torch, dtype_name)
        g = torch.Generator(device=self.device).manual_seed(0)
        self.J = torch.randn(self.B, self.C, width, generator=g, device=device).to(dtype)
        self.peer_dtype = torch.promote_types(dtype, torch.float32)
        self.logits = torch.randn(self.B, self.C, generator=g, device=device).to(self.peer_dtype)
        self.target = torch.randint(self.C, (self.B,), generator=g, device=device)
        self.sigma = 0.1
        self.passes = self.D // width

    def jac_cov(self):
        import torch

        from mvnrob import _jac_cov as op

        if self.chunk is None:
            return op.jac_cov(self.J, self.logits, self.target, self.sigma)
        S = self.J.new_zeros(self.B, self.C, self.C, dtype=torch.float64)
        for _ in range(self.passes):
            op.jac_cov_accumulate(S, self.J, self.target)
        return op.jac_cov_finalize(S, self.logits, self.target, self.sigma)

    def differences(self):
        import torch

        J = self.J.to(self.peer_dtype)
        return J[torch.arange(self.B, device=J.device), self.target][:, None] - J

    def peer_jac_cov(self):
        """z and corr over all classes, the target's row and column included (NaN or 0)."""
        import torch

        if self.chunk is None:
            u = self.differences()
            norms = torch.linalg.vector_norm(u, dim=-1)
            unit = u / norms.clamp_min(torch.finfo(u.dtype).tiny)[..., None]
            corr = torch.bmm(unit, unit.mT)
        else:
            S = self.J.new_zeros(self.B, self.C, self.C, dtype=self.peer_dtype)
            for _ in range(self.passes):
                u = self.differences()
                S.baddbmm_(u, u.mT)
            norms = S.diagonal(dim1=-2, dim2=-1).sqrt()
            safe = norms.clamp_min(torch.finfo(S.dtype).tiny)
            corr = S / safe[:, :, None] / safe[:, None]
        margin = self.logits.gather(1, self.target[:, None]) - self.logits
        return margin / (self.sigma * norms), corr

    def norms(self):
        from mvnrob._jac_cov import jac_cov_norms

        return jac_cov_norms(self.J, self.target)

    def peer_norms(self):
        return self.differences().square().sum(-1)

    def rows(self, threads, repeats):
        import torch

        from mvnrob._jac_cov import jac_cov_reference

        some = slice(0, 4)
        want = jac_cov_reference(self.J[some], self.logits[some], self.target[some], self.sigma)
        keep = want.keep
        place = torch.arange(len(keep), device=keep.device)[:, None, None]
        off = ~torch.eye(self.C - 1, dtype=torch.bool, device=keep.device)

        def ours():
            return self.jac_cov().corr[some]

        def peers():
            return self.peer_jac_cov()[1][some][place, keep[:, :, None], keep[:, None]]

        def error(corr):
            return (corr.double() - want.corr)[:, off].abs().max().item()

        errors = [error(corr()) for corr in (ours, peers)]
        flops = self.C * (self.C + 1) * self.D * self.B
        yield self.row("jac_cov", self.jac_cov, self.peer_jac_cov, errors, flops, "GFLOP/s",
                       threads, repeats, lambda: error(peers()))  # fmt: skip
        if self.chunk is None:
            errors = [
                (x[some].gather(1, keep) / want.norms.square() - 1).abs().max().item()
                for x in (self.norms(), self.peer_norms())
            ]
            size = self.J.numel() * self.J.element_size()
            yield self.row("jac_cov_norms", self.norms, self.peer_norms, errors, size, "GB/s",
                           threads, repeats)  # fmt: skip

    def row(self, op, ours, peer, errors, work, unit, threads, repeats, tf32_error=None):
        if not errors[0] <= WORST[self.dtype]:
            raise Wrong(f"{op}: error {errors[0]:.1e}")
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            times = [measure_cuda(call, self.device, self.seconds) for call in (ours, peer)]
        else:
            times = measure(ours, peer, threads, repeats)
        (ms, spread), (peer_ms, peer_spread) = times
        values = [op, self.C, self.D, self.chunk, self.B, self.dtype, ms / self.B, spread,
                  work / ms / 1e6, unit, errors[0], peer_ms / self.B, peer_spread, errors[1],
                  peer_ms / ms]  # fmt: skip
        if on_gpu and tf32_error and self.dtype != "float64":
            values += self.with_tf32(peer, tf32_error, ms)
        return dict(zip(CUDA_COLUMNS, values, strict=False))

    def with_tf32(self, peer, error, ms):
        """The peer's time and error with TF32 allowed, and how many times ours it takes."""
        import torch

        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            took, _ = measure_cuda(peer, self.device, self.seconds)
            return [took / self.B, error(), took / ms]
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument(
        "--cases",
        type=harness.several(harness.case(chunks=True)),
        default="10x3072,100x3072,1000x3072,1000x150528/3072",
    )
    p.add_argument(
        "--dtypes",
        type=harness.several(harness.one_of(WORST)),
        default="float32",
        help="of " + ", ".join(WORST),
    )
    p.add_argument("--threads", type=harness.whole(), default=1)
    p.add_argument(
        "--repeats", type=harness.whole(), default=15, help="a third of it for cases in chunks"
    )
    p.add_argument("--device", type=harness.device, default="cpu", help="cpu or cuda")
    p.add_argument(
        "--budget", type=harness.positive, default=40, help="seconds of timing, on a GPU"
    )
    args = p.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    report = harness.environment()
    on_gpu = args.device == "cuda"
    if on_gpu:
        report |= cuda_environment.gpu() | {"commit": cuda_environment.commit()}
        report["copy_tb_s"] = cuda_timing.copy_tb_s(torch.device("cuda"))
    harness.show_environment(report)
    rows, wrong = [], []
    cases = [(text, dtype) for text in args.cases for dtype in args.dtypes]
    for text, dtype in cases:
        case = Case(text, dtype, args.device)
        case.seconds = args.budget / (5 * len(cases))
        repeats = args.repeats if case.chunk is None else max(3, args.repeats // 3)
        try:
            rows += case.rows(args.threads, repeats)
        except RuntimeError as error:  # the other cases are timed all the same
            wrong.append(f"{text} {dtype}: {str(error).splitlines()[0]}")
    if on_gpu:
        rows = cuda_shares.with_floors(rows, report)
    harness.show(rows, [*CUDA_COLUMNS, *FLOOR_COLUMNS] if on_gpu else COLUMNS)
    report["wrong"] = wrong
    harness.write("cuda_jac_cov" if on_gpu else "jac_cov", report, rows, args.out)
    for said in wrong:
        print(f"# wrong: {said}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
