#include "peft/config.hpp"
