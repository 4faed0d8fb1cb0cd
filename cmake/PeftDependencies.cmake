# What the library itself needs. Eigen without a version in the request: "3.4" would reject 5.x.
find_package(Threads REQUIRED)
find_package(Eigen3 CONFIG REQUIRED)
if(Eigen3_VERSION VERSION_LESS 3.4)
  message(FATAL_ERROR "peft needs Eigen 3.4 or later; found ${Eigen3_VERSION}")
endif()
find_package(fmt CONFIG REQUIRED)
find_package(nlohmann_json 3.9 CONFIG REQUIRED)
