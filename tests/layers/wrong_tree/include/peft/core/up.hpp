#include "peft/kernels/k.hpp"
