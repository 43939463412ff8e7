// The losses of rows and their reduction, from both log-sum-exps. Vectors only: one call here takes
// the place of a dozen tensor operations, which at a small batch cost as much as a pass.
#pragma once

#include <cstdint>

namespace circle_kernels {

enum class Reduction { mean, mean_all, mean_nonzero, sum, none };

// loss_i = softplus(lse_pos_i + lse_neg_i); reduced over rows to one number, unless that is `none`.
// "mean" is over rows that have a positive and a negative, whose sum is not -inf; "mean_nonzero"
// over rows whose loss is not 0.
//
// slopes_i is the derivative of the loss with respect to lse_pos_i, which is that to lse_neg_i.
template <class T>
void row_losses(const T* lse_pos,  // (rows,)
                const T* lse_neg,  // (rows,)
                int64_t rows, Reduction reduction,
                T* loss,     // (1,), or (rows,) without a reduction
                T* slopes);  // (rows,)

}  // namespace circle_kernels
