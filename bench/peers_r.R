# pmvnorm (mvtnorm) or mvNcdf (TruncatedNormal) on the problems of one file: bench/peers_cpu.py.
#   Rscript peers_r.R version PACKAGE
#   Rscript peers_r.R run PACKAGE POINTS BUDGET_S SEED IN OUT
# IN: little-endian doubles: count, then for each problem n, upper [n], cov [n, n].
# OUT: a line "probability cpu_seconds stated_error" for each problem done within the budget.
# Only the integrator is timed (proc.time, user and system): not start-up, not reading.
arguments <- commandArgs(trailingOnly = TRUE)
package <- arguments[2]
if (!requireNamespace(package, quietly = TRUE)) quit(status = 3)
if (arguments[1] == "version") {
  cat(as.character(packageVersion(package)))
  quit(status = 0)
}
points <- as.numeric(arguments[3])
budget <- as.numeric(arguments[4])
set.seed(as.integer(arguments[5]))

integrate <- switch(package,
  mvtnorm = {
    algorithm <- mvtnorm::GenzBretz(maxpts = points, abseps = 1e-12, releps = 0)
    function(upper, cov) {
      p <- mvtnorm::pmvnorm(upper = upper, sigma = cov, algorithm = algorithm)
      c(p, attr(p, "error"))
    }
  },
  TruncatedNormal = function(upper, cov) {
    p <- TruncatedNormal::mvNqmc(l = rep(-Inf, length(upper)), u = upper, Sig = cov, n = points)
    c(p$prob, p$relErr * p$prob)
  }
)

cpu <- function() sum(proc.time()[c("user.self", "sys.self")])
file <- file(arguments[6], "rb")
count <- readBin(file, "double", 1, endian = "little")
out <- file(arguments[7], "w")
spent <- 0
for (i in seq_len(count)) {
  n <- readBin(file, "double", 1, endian = "little")
  upper <- readBin(file, "double", n, endian = "little")
  cov <- matrix(readBin(file, "double", n * n, endian = "little"), n, n)
  # proc.time counts milliseconds: a short call is repeated until it has taken some.
  times <- 0
  start <- cpu()
  repeat {
    answer <- tryCatch(integrate(upper, cov), error = function(e) c(NaN, NaN))
    times <- times + 1
    took <- cpu() - start
    if (took >= 0.02 || is.nan(answer[1])) break
  }
  cat(format(c(answer[1], took / times, answer[2]), digits = 17), "\n", file = out)
  flush(out)
  spent <- spent + took
  if (spent > budget) break
}
close(out)
