#include "peft/absent.hpp"
