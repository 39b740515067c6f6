// pybind11 module: mvn_cdf, mvn_cdf_sums, mvn_cdf_pathwise, mendell_elston, pivoted_cholesky,
// bvn_cdf, standard_normal and nearest_ends by the CUDA kernels' bodies on the shim.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "kernels/bvn_cdf.h"
#include "kernels/nearest_ends.h"
#include "kernels/standard_normal.h"
#include "shim_mendell_elston.h"
#include "shim_mvn_cdf.h"
#include "shim_pivoted_cholesky.h"
#include "stand_in_bindings.h"

namespace py = pybind11;
using mvnrob::kernels::MvnCdfArgs;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Input common to both; the arrays must outlive the arguments.
template <class T>
MvnCdfArgs arguments(const Array<T>& upper, const py::array_t<T>& cov,
                     const std::optional<Array<T>>& lower, const Array<int64_t>& seed,
                     bool factored) {
  MvnCdfArgs a{};
  a.rows = upper.shape(0);
  a.n = int32_t(upper.shape(1));
  a.is_double = sizeof(T) == 8;
  a.upper = upper.data();
  a.lower = lower ? lower->data() : nullptr;
  a.cov = cov.data();
  const int64_t element = sizeof(T);
  a.cov_strides = {cov.strides(0) / element, cov.strides(1) / element, cov.strides(2) / element};
  a.factor_columns = factored ? int32_t(cov.shape(2)) : -1;
  a.seed = seed.data();
  a.grow_from = 1;  // whatever a grid can make it makes, if there is one
  return a;
}

// Of a device that has them for float64 and holds two blocks of the float32 sampler, or neither.
void set_tensor_cores(MvnCdfArgs& a, bool all) {
  a.double_tensor = all;
  a.tensor_pivots = all ? mvnrob::kernels::kTensorPivots : mvnrob::kernels::kTensorPivotsOfOneBlock;
}

// `together` -1: no grid, and a block makes columns one by one and subtracts no panels of them.
void run(MvnCdfArgs a, int64_t tile_rows, int64_t resident, bool captured, int64_t together,
         std::optional<int64_t> host_lag) {
  a.columns_only = together < 0;
  if (together < 0) a.factor_shared = -1;
  together = std::max<int64_t>(together, 0);
  if (a.options.samples_float32())
    mvnrob::shim::run_mvn_cdf<float>(a, tile_rows, resident, captured, together, host_lag);
  else
    mvnrob::shim::run_mvn_cdf<double>(a, tile_rows, resident, captured, together, host_lag);
}

mvnrob::ComputeType compute_type(const std::string& name) {
  return name == "float32"   ? mvnrob::ComputeType::float32
         : name == "float64" ? mvnrob::ComputeType::float64
                             : mvnrob::ComputeType::automatic;
}

mvnrob::PointSet point_set(const std::string& name) {
  return name == "lattice"     ? mvnrob::PointSet::lattice
         : name == "richtmyer" ? mvnrob::PointSet::richtmyer
                               : mvnrob::PointSet::sobol;
}

template <class T>
py::tuple mvn_cdf(const Array<T>& upper, const py::array_t<T>& cov,
                  const std::optional<Array<T>>& lower, const Array<int64_t>& seed, double abs_tol,
                  double rel_tol, int64_t max_points, const std::string& method,
                  const std::string& compute_dtype, const std::string& points, int64_t tile_rows,
                  int64_t resident, bool factored, bool double_tensor, bool captured,
                  int64_t together, std::optional<int64_t> host_lag, double log_tol) {
  MvnCdfArgs a = arguments(upper, cov, lower, seed, factored);
  set_tensor_cores(a, double_tensor);
  a.options = {abs_tol,
               rel_tol,
               max_points,
               method == "sov"           ? mvnrob::Method::sov
               : method == "closed_form" ? mvnrob::Method::closed_form
                                         : mvnrob::Method::automatic,
               compute_type(compute_dtype),
               point_set(points),
               log_tol};
  Array<T> prob(a.rows), complement(a.rows), error(a.rows), log_prob(a.rows), log_error(a.rows);
  Array<int64_t> status(a.rows), n_points(a.rows), n_active(a.rows), n_pivots(a.rows);
  a.prob = prob.mutable_data();
  a.complement = complement.mutable_data();
  a.error = error.mutable_data();
  a.log_prob = log_prob.mutable_data();
  a.log_error = log_error.mutable_data();
  a.status = status.mutable_data();
  a.n_points = n_points.mutable_data();
  a.n_active = n_active.mutable_data();
  a.n_pivots = n_pivots.mutable_data();
  run(a, tile_rows, resident, captured, together, host_lag);
  return py::make_tuple(prob, complement, error, status, n_points, n_active, n_pivots, log_prob,
                        log_error);
}

template <class T>
Array<double> mvn_cdf_sums(const Array<T>& upper, const py::array_t<T>& cov,
                           const std::optional<Array<T>>& lower, const Array<int64_t>& seed,
                           const Array<int64_t>& order, int64_t n_points,
                           const std::string& compute_dtype, const std::string& points,
                           int64_t tile_rows, int64_t resident, bool factored, bool double_tensor,
                           int64_t together, int64_t grow_from) {
  MvnCdfArgs a = arguments(upper, cov, lower, seed, factored);
  set_tensor_cores(a, double_tensor);
  a.grow_from = grow_from;
  a.options = {
      0, 0, n_points, mvnrob::Method::automatic, compute_type(compute_dtype), point_set(points)};
  a.order = order.data();
  a.n_order = int32_t(order.shape(1));
  a.forced_points = n_points;
  Array<double> sums({a.rows, int64_t(mvnrob::kShifts), int64_t(5)});
  a.forced_sums = reinterpret_cast<mvnrob::SampleSums*>(sums.mutable_data());
  run(a, tile_rows, resident, false, together, 0);
  return sums;
}

template <class T>
mvnrob::kernels::MendellElstonArgs sweep_arguments(const Array<T>& upper, const py::array_t<T>& cov,
                                                   const std::optional<Array<T>>& lower) {
  mvnrob::kernels::MendellElstonArgs a{};
  a.rows = upper.shape(0);
  a.n = int32_t(upper.shape(1));
  a.is_double = sizeof(T) == 8;
  a.upper = upper.data();
  a.lower = lower ? lower->data() : nullptr;
  a.cov = cov.data();
  const int64_t element = sizeof(T);
  a.cov_strides = {cov.strides(0) / element, cov.strides(1) / element, cov.strides(2) / element};
  return a;
}

template <class T>
py::tuple mendell_elston(const Array<T>& upper, const py::array_t<T>& cov,
                         const std::optional<Array<T>>& lower, int64_t resident) {
  auto a = sweep_arguments(upper, cov, lower);
  Array<T> prob(a.rows), complement(a.rows), log_prob(a.rows);
  Array<int64_t> status(a.rows), n_active(a.rows), n_pivots(a.rows);
  a.prob = prob.mutable_data();
  a.complement = complement.mutable_data();
  a.log_prob = log_prob.mutable_data();
  a.status = status.mutable_data();
  a.n_active = n_active.mutable_data();
  a.n_pivots = n_pivots.mutable_data();
  mvnrob::shim::run_mendell_elston(a, resident);
  return py::make_tuple(prob, complement, log_prob, status, n_active, n_pivots);
}

template <class T>
py::tuple mendell_elston_backward(const Array<double>& grad, const Array<T>& upper,
                                  const py::array_t<T>& cov, const std::optional<Array<T>>& lower,
                                  bool wants_cov, int64_t resident) {
  auto a = sweep_arguments(upper, cov, lower);
  const int64_t n = a.n;
  Array<T> to_upper({a.rows, n}), to_lower({lower ? a.rows : 0, n}),
      to_cov({wants_cov ? a.rows : 0, n, n});
  a.grad = grad.data();
  a.to_upper = to_upper.mutable_data();
  a.to_lower = lower ? to_lower.mutable_data() : nullptr;
  a.to_cov = wants_cov ? to_cov.mutable_data() : nullptr;
  mvnrob::shim::run_mendell_elston(a, resident);
  return py::make_tuple(to_upper, to_lower, to_cov);
}

template <class T>
py::tuple mvn_cdf_pathwise(const Array<T>& upper, const py::array_t<T>& cov,
                           const std::optional<Array<T>>& lower, const Array<int64_t>& seed,
                           const Array<int64_t>& order, const Array<int64_t>& first,
                           const Array<int64_t>& points, const Array<double>& weight,
                           const std::string& compute_dtype, bool wants_cov,
                           const std::string& point_set_name, bool factored,
                           const std::optional<Array<double>>& tilt, int64_t tile_rows,
                           int64_t resident, int64_t together) {
  mvnrob::kernels::MvnCdfPathwiseArgs a{};
  a.plan = arguments(upper, cov, lower, seed, factored);
  a.plan.options = {0,
                    0,
                    mvnrob::kTileSamples,
                    mvnrob::Method::automatic,
                    compute_type(compute_dtype),
                    point_set(point_set_name)};
  a.plan.order = order.data();
  a.plan.n_order = int32_t(order.shape(1));
  a.plan.tilt = tilt ? tilt->data() : nullptr;
  a.first = first.data();
  a.points = points.data();
  a.weight = weight.data();
  a.width = 2 + (wants_cov ? a.plan.n_order : 0);
  const int64_t rows = a.plan.rows, n = a.plan.n, shifts = mvnrob::kShifts;
  const int64_t matrices = wants_cov ? rows : 0;
  Array<double> value({rows, shifts}), to_upper({rows, shifts, n}), to_lower({rows, shifts, n}),
      to_cov({matrices, n, n}), variance({matrices, n, n}), log_unit(rows);
  Array<int64_t> pivots(rows);
  a.value = value.mutable_data();
  a.upper = to_upper.mutable_data();
  a.lower = to_lower.mutable_data();
  a.cov = wants_cov ? to_cov.mutable_data() : nullptr;
  a.cov_variance = wants_cov ? variance.mutable_data() : nullptr;
  a.pivots = pivots.mutable_data();
  a.log_unit = log_unit.mutable_data();
  a.plan.columns_only = together < 0;
  if (together < 0) a.plan.factor_shared = -1;
  together = std::max<int64_t>(together, 0);
  if (a.plan.options.samples_float32())
    mvnrob::shim::run_mvn_cdf_pathwise<float>(a, tile_rows, resident, together);
  else
    mvnrob::shim::run_mvn_cdf_pathwise<double>(a, tile_rows, resident, together);
  return py::make_tuple(value, to_upper, to_lower, to_cov, variance, pivots, log_unit);
}

template <class T>
py::tuple pivoted_cholesky(const Array<T>& upper, const py::array_t<T>& cov,
                           const std::optional<Array<T>>& lower, int columns, bool factored,
                           int64_t tile_rows, int64_t resident) {
  mvnrob::kernels::PivotedCholeskyArgs a{};
  a.plan = arguments(upper, cov, lower, Array<int64_t>(0), factored);
  a.columns = columns;
  const int64_t rows = a.plan.rows, n = a.plan.n;
  Array<T> factor({rows, n, int64_t(columns)}), residual({rows, n});
  Array<int64_t> order({rows, n}), rank(rows), status(rows);
  a.factor = factor.mutable_data();
  a.residual = residual.mutable_data();
  a.order = order.mutable_data();
  a.rank = rank.mutable_data();
  a.status = status.mutable_data();
  mvnrob::shim::run_pivoted_cholesky(a, tile_rows, resident);
  return py::make_tuple(factor, order, rank, residual, status);
}

Array<double> bvn_cdf(const Array<double>& h, const Array<double>& k, const Array<double>& rho,
                      unsigned blocks) {
  Array<double> out(h.size());
  mvnrob::shim::launch<mvnrob::kernels::BvnCdf>(
      blocks, 0, {h.data(), k.data(), rho.data(), out.mutable_data(), int64_t(h.size())});
  return out;
}

Array<float> standard_normal(const Array<int64_t>& keys, int64_t first, int64_t count, int64_t dim,
                             unsigned blocks) {
  Array<float> out({int64_t(keys.size()), count, dim});
  const mvnrob::kernels::StandardNormalArgs args{
      keys.data(), out.mutable_data(), int64_t(keys.size()), first, count, dim};
  if (blocks == 0) blocks = mvnrob::kernels::StandardNormal::blocks(args);
  mvnrob::shim::launch<mvnrob::kernels::StandardNormal>(blocks, 0, args);
  return out;
}

// A launch: both signs of the columns from `exact` on, those from `flipped` on with the other one.
py::tuple nearest_ends(const Array<float>& limit, const Array<float>& table,
                       const Array<float>& draws, int32_t rising, int32_t exact, int32_t flipped,
                       bool wants_rows, unsigned blocks) {
  const auto inputs = limit.shape(0), count = draws.shape(0);
  Array<float> upper({py::ssize_t(2), count, inputs}), lower({py::ssize_t(2), count, inputs});
  Array<int64_t> above({py::ssize_t(2), count, inputs}), below({py::ssize_t(2), count, inputs});
  mvnrob::kernels::NearestEndsArgs a{};
  a.limit = limit.data();
  a.table = table.data();
  a.draws = draws.data();
  a.upper = upper.mutable_data();
  a.lower = lower.mutable_data();
  a.above = wants_rows ? above.mutable_data() : nullptr;
  a.below = wants_rows ? below.mutable_data() : nullptr;
  a.stride = draws.shape(1);
  a.inputs = int32_t(inputs);
  a.rows = int32_t(limit.shape(1));
  a.rising = rising;
  a.columns = int32_t(table.shape(2));
  a.exact = exact;
  a.flipped = flipped;
  a.count = int32_t(count);
  a.slot[1] = 1;
  using Body = mvnrob::kernels::NearestEnds;
  mvnrob::shim::launch<Body>(blocks ? blocks : Body::blocks(a), Body::kSharedBytes, a);
  return py::make_tuple(upper, lower, above, below);
}

template <class T>
void define(py::module_& m) {
  m.def("mvn_cdf", &mvn_cdf<T>, py::arg("upper"), py::arg("cov"), py::arg("lower").none(true),
        py::arg("seed"), py::arg("abs_tol"), py::arg("rel_tol"), py::arg("max_points"),
        py::arg("method"), py::arg("compute_dtype"), py::arg("points"),
        py::arg("tile_rows") = 1 << 20, py::arg("resident") = 3, py::arg("factored") = false,
        py::arg("double_tensor") = true, py::arg("captured") = false, py::arg("together") = 0,
        py::arg("host_lag") = 0, py::arg("log_tol") = 0.0);
  m.def("mvn_cdf_sums", &mvn_cdf_sums<T>, py::arg("upper"), py::arg("cov"),
        py::arg("lower").none(true), py::arg("seed"), py::arg("order"), py::arg("n_points"),
        py::arg("compute_dtype"), py::arg("points"), py::arg("tile_rows") = 1 << 20,
        py::arg("resident") = 3, py::arg("factored") = false, py::arg("double_tensor") = true,
        py::arg("together") = 0, py::arg("grow_from") = 1);
  m.def("mendell_elston", &mendell_elston<T>, py::arg("upper"), py::arg("cov"),
        py::arg("lower").none(true), py::arg("resident") = 3);
  m.def("mendell_elston_backward", &mendell_elston_backward<T>, py::arg("grad"), py::arg("upper"),
        py::arg("cov"), py::arg("lower").none(true), py::arg("wants_cov"), py::arg("resident") = 3);
  m.def("pivoted_cholesky", &pivoted_cholesky<T>, py::arg("upper"), py::arg("cov"),
        py::arg("lower").none(true), py::arg("columns"), py::arg("factored"),
        py::arg("tile_rows") = 1 << 20, py::arg("resident") = 3);
  m.def("mvn_cdf_pathwise", &mvn_cdf_pathwise<T>, py::arg("upper"), py::arg("cov"),
        py::arg("lower").none(true), py::arg("seed"), py::arg("order"), py::arg("first"),
        py::arg("points"), py::arg("weight"), py::arg("compute_dtype"), py::arg("wants_cov"),
        py::arg("point_set"), py::arg("factored") = false, py::arg("tilt").none(true) = py::none(),
        py::arg("tile_rows") = 1 << 20, py::arg("resident") = 3, py::arg("together") = 0);
}

}  // namespace

PYBIND11_MODULE(MVNROB_MODULE, m) {
  define<float>(m);
  define<double>(m);
  m.def("bvn_cdf", &bvn_cdf);
  m.def("standard_normal", &standard_normal, py::arg("keys"), py::arg("first"), py::arg("count"),
        py::arg("dim"), py::arg("blocks") = 0);
  m.def("nearest_ends", &nearest_ends, py::arg("limit"), py::arg("table"), py::arg("draws"),
        py::arg("rising"), py::arg("exact"), py::arg("flipped"), py::arg("wants_rows"),
        py::arg("blocks") = 0);
  m.def("launches", [] { return mvnrob::shim::launches(); });
  m.def("launched_rounds", [] {  // since it was asked last
    return std::exchange(mvnrob::shim::launched_rounds(), {});
  });
  m.def("multiplies_doubles", &mvnrob::kernels::multiplies_doubles);
  m.def("grown", [] { return mvnrob::shim::grown(); });
  define_stand_ins(m);
  m.def("set_device_shared", [](size_t bytes) { mvnrob::shim::device_shared() = bytes; });
  m.def("set_order", [](uint64_t seed) { mvnrob::shim::set_order(seed); });
}
