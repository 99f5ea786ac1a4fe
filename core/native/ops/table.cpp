#include "ops.h"

namespace zoo::ZOO_ISA {

using namespace ops;

// In the order of Code.
const IsaKernels kernels = {
    {linear_op, head_linear_op, glu_op, embedding_op, rms_norm_op, layer_norm_op, rotary_op, attend_op,
     attend_latent_op, route_op, moe_op, elementwise_op, sample_op},
    &matmul_kernels,
};

}  // namespace zoo::ZOO_ISA
