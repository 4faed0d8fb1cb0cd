// Views are row-major: a column-major Eigen matrix does not become one silently transposed.
#include <peft/core/eigen.hpp>

peft::MatrixView<float> view(Eigen::MatrixXf& matrix) { return peft::view_of(matrix); }
