"""How kernels in Triton round: product and sum each, as tensor operations do, and as the interpreter that tests them does."""

# An option of launches: Triton up to 3.9 joins products with sums unless told, and 3.9 warns. It would spare 0.6 % of the
# instructions of the active set's iteration (D = 128, compiled for an H100).
EACH_ROUNDED = {"enable_fp_fusion": False}
