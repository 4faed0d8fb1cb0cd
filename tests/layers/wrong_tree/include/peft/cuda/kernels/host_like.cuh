#include <vector>
#include "peft/core/up.hpp"
#include "peft/core/scalar.hpp"
