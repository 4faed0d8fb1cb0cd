# cmake -DSOURCE= -DWORK= -DCXX= -P conan.cmake
# Makes the Conan package and builds its test package against it, in a Conan home of its own and without a server: once
# with the system's libraries, once with packages of ConanCenter's names (stand-ins, since its server may be out of
# reach). Then what the package holds, and that a compiler that is too old is refused.
cmake_policy(VERSION 3.22)
if(DEFINED ENV{PEFT_CONAN})
  set(conan "$ENV{PEFT_CONAN}")
else()
  find_program(conan conan)
endif()
if(NOT conan)
  message("skipped: there is no conan; set PEFT_CONAN, or python3 -m venv v && v/bin/pip install conan")
  return()
endif()

function(step)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${WORK}" RESULT_VARIABLE status OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "conan: ${ARGN} failed: ${status}\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()
function(expect text)
  if(NOT out MATCHES "${text}")
    message(FATAL_ERROR "conan: expected \"${text}\" in\n${out}")
  endif()
  set(found "${CMAKE_MATCH_0}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE "${WORK}")
file(COPY "${SOURCE}/conanfile.py" "${SOURCE}/LICENSE" "${SOURCE}/include" "${SOURCE}/test_package"
  "${SOURCE}/tests/consumer/conan_stand_in" DESTINATION "${WORK}")
set(ENV{CONAN_HOME} "${WORK}/home")
set(ENV{CXX} "${CXX}")
step("${conan}" profile detect --force)
set(settings --no-remote -s compiler.cppstd=20 -s build_type=Debug)  # the test packages compile in half the time

step("${conan}" create . ${settings} -o "peft/*:with_system_libs=True" --test-folder=test_package)
expect("peft [0-9.]+: loss [0-9.]+ -> [0-9.]+")
message("with the system's libraries: ${found}")

foreach(reference eigen/3.4.0 fmt/9.1.0 nlohmann_json/3.11.2)
  string(REPLACE "/" ";" parts "${reference}")
  list(GET parts 0 name)
  list(GET parts 1 version)
  step("${conan}" create conan_stand_in ${settings} --name ${name} --version ${version})
endforeach()
step("${conan}" create . ${settings} --test-folder=test_package)
expect("peft [0-9.]+: loss [0-9.]+ -> [0-9.]+")
message("with packages: ${found}")

# Nothing but headers and the licence.
file(GLOB folders "${WORK}/home/p/*/p/licenses/LICENSE" "${WORK}/home/p/b/*/p/licenses/LICENSE")
list(LENGTH folders count)
if(NOT count EQUAL 1)
  message(FATAL_ERROR "conan: expected one package of peft with its licence; got ${count}: ${folders}")
endif()
get_filename_component(package "${folders}" DIRECTORY)
get_filename_component(package "${package}" DIRECTORY)
file(GLOB_RECURSE got RELATIVE "${package}" "${package}/*")
file(GLOB_RECURSE headers RELATIVE "${SOURCE}" "${SOURCE}/include/peft/*")
set(expected ${headers} licenses/LICENSE conaninfo.txt conanmanifest.txt)
list(SORT got)
list(SORT expected)
if(NOT got STREQUAL expected)
  message(FATAL_ERROR "conan: the package holds\n${got}\nexpected\n${expected}")
endif()

# Refused, by name: an old compiler, an old standard.
foreach(setting "compiler.version=11" "compiler.cppstd=17")
  execute_process(COMMAND "${conan}" create . ${settings} -s compiler=gcc -s compiler.version=12 -s
    compiler.libcxx=libstdc++11 -s ${setting} --test-folder= WORKING_DIRECTORY "${WORK}" RESULT_VARIABLE status
    OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(status EQUAL 0 OR NOT out MATCHES "Invalid: (peft [0-9.]+ needs gcc 12 or later; got 11|Current cppstd \\(17\\))")
    message(FATAL_ERROR "conan: -s ${setting} gave ${status}\n${out}")
  endif()
endforeach()
