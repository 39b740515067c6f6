"""jac_cov and jac_cov_norms beside the unfused PyTorch form: time and error.

python -m bench.bench_jac_cov [--cases 10x3072,1000x150528/3072] [--dtypes float32] [--threads 1]

The peer takes differences, norms, quotients and one bmm over the full square, in J's dtype (float32
for bfloat16). A case CxD/CHUNK goes through jac_cov_accumulate in chunks of CHUNK columns (the peer
adds bmm's of the differences), each chunk the same data, so that it fits in memory. Both sides are
checked against float64 before they are timed. GFLOP/s counts useful work, C (C + 1) D, for both;
GB/s counts J read once. Times are per problem: processor time with one thread, else wall time; our
runs and the peer's alternate.
"""

import statistics
import sys
import time

from bench import harness

# Several times what the tests allow: a wrong result prints no time.
WORST = {"float32": 8e-6, "float64": 1e-12, "bfloat16": 8e-6}
COLUMNS = ["op", "C", "D", "chunk", "B", "dtype", "ms", "spread", "rate", "unit", "error",
           "peer_ms", "peer_spread", "peer_error", "speedup"]  # fmt: skip


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


class Case:
    """Inputs of one size; the two sides of each comparison as methods."""

    def __init__(self, text, dtype_name):
        import torch

        size, _, chunk = text.partition("/")
        self.text, self.dtype = text, dtype_name
        self.C, self.D = (int(x) for x in size.split("x"))
        self.chunk = int(chunk) if chunk else None
        width = self.chunk or self.D
        if self.D % width:
            sys.exit(f"bench_jac_cov: CHUNK must divide D, got {text}")
        self.B = max(1, min(256, 8_000_000 // (self.C * width)))
        g = torch.Generator().manual_seed(0)
        dtype = getattr(torch, dtype_name)
        self.J = torch.randn(self.B, self.C, width, generator=g).to(dtype)
        self.peer_dtype = torch.promote_types(dtype, torch.float32)
        self.logits = torch.randn(self.B, self.C, generator=g).to(self.peer_dtype)
        self.target = torch.randint(self.C, (self.B,), generator=g)
        self.sigma = 0.1
        self.passes = self.D // width

    def jac_cov(self):
        import torch

        from mvnrob import _jac_cov as op

        if self.chunk is None:
            return op.jac_cov(self.J, self.logits, self.target, self.sigma)
        S = torch.zeros(self.B, self.C, self.C, dtype=torch.float64)
        for _ in range(self.passes):
            op.jac_cov_accumulate(S, self.J, self.target)
        return op.jac_cov_finalize(S, self.logits, self.target, self.sigma)

    def differences(self):
        import torch

        J = self.J.to(self.peer_dtype)
        return J[torch.arange(self.B), self.target][:, None] - J

    def peer_jac_cov(self):
        """z and corr over all classes, the target's row and column included (NaN or 0)."""
        import torch

        if self.chunk is None:
            u = self.differences()
            norms = torch.linalg.vector_norm(u, dim=-1)
            unit = u / norms.clamp_min(torch.finfo(u.dtype).tiny)[..., None]
            corr = torch.bmm(unit, unit.mT)
        else:
            S = torch.zeros(self.B, self.C, self.C, dtype=self.peer_dtype)
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
        place = torch.arange(len(keep))[:, None, None]
        square = self.peer_jac_cov()[1][some][place, keep[:, :, None], keep[:, None]]
        off = ~torch.eye(self.C - 1, dtype=torch.bool)
        errors = [
            (corr.double() - want.corr)[:, off].abs().max().item()
            for corr in (self.jac_cov().corr[some], square)
        ]
        flops = self.C * (self.C + 1) * self.D * self.B
        yield self.row("jac_cov", self.jac_cov, self.peer_jac_cov, errors, flops, "GFLOP/s",
                       threads, repeats)  # fmt: skip
        if self.chunk is None:
            errors = [
                (x[some].gather(1, keep) / want.norms.square() - 1).abs().max().item()
                for x in (self.norms(), self.peer_norms())
            ]
            size = self.J.numel() * self.J.element_size()
            yield self.row("jac_cov_norms", self.norms, self.peer_norms, errors, size, "GB/s",
                           threads, repeats)  # fmt: skip

    def row(self, op, ours, peer, errors, work, unit, threads, repeats):
        if not errors[0] <= WORST[self.dtype]:
            sys.exit(f"bench_jac_cov: {op} {self.text} {self.dtype}: error {errors[0]:.1e}")
        (ms, spread), (peer_ms, peer_spread) = measure(ours, peer, threads, repeats)
        values = [op, self.C, self.D, self.chunk, self.B, self.dtype, ms / self.B, spread,
                  work / ms / 1e6, unit, errors[0], peer_ms / self.B, peer_spread, errors[1],
                  peer_ms / ms]  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


def main():
    p = harness.parser(__doc__.splitlines()[0])
    p.add_argument("--cases", default="10x3072,100x3072,1000x3072,1000x150528/3072")
    p.add_argument("--dtypes", default="float32", help="of " + ", ".join(WORST))
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--repeats", type=int, default=15, help="a third of it for cases in chunks")
    args = p.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    report = harness.environment()
    harness.show_environment(report)
    rows = []
    for text in args.cases.split(","):
        for dtype in args.dtypes.split(","):
            case = Case(text, dtype)
            repeats = args.repeats if case.chunk is None else max(3, args.repeats // 3)
            rows += case.rows(args.threads, repeats)
    harness.show(rows, COLUMNS)
    harness.write("jac_cov", report, rows, args.out)


if __name__ == "__main__":
    main()
