#include "cuda/jac_cov_instance.h"

namespace mvnrob::cuda {

MVNROB_JAC_COV_INSTANCE(double);

}  // namespace mvnrob::cuda
