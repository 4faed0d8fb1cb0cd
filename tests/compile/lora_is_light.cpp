// lora.hpp costs its includer neither Eigen nor JSON nor threads nor streams nor regular expressions.
#include <peft/lora.hpp>

#if defined(EIGEN_CORE_H) || defined(EIGEN_CORE_MODULE_H)
#error "lora.hpp includes Eigen"
#endif
#if defined(NLOHMANN_JSON_VERSION_MAJOR) || defined(INCLUDE_NLOHMANN_JSON_HPP_)
#error "lora.hpp includes nlohmann/json"
#endif
#if defined(_GLIBCXX_THREAD) || defined(_GLIBCXX_IOSTREAM) || defined(_GLIBCXX_REGEX) || defined(_GLIBCXX_FUNCTIONAL)
#error "lora.hpp includes <thread>, <iostream>, <regex> or <functional>"
#endif
