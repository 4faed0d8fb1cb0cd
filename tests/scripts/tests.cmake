# Scripts in Python: measuring, goldens, packages. Without a Python there is nothing to check.
find_program(PEFT_PYTHON python3)
if(PEFT_PYTHON)
  add_test(NAME python_scripts
    COMMAND "${PEFT_PYTHON}" -E -s -S "${CMAKE_CURRENT_LIST_DIR}/check_scripts.py" "${PROJECT_SOURCE_DIR}")
  set_tests_properties(python_scripts PROPERTIES LABELS "unit;scripts" TIMEOUT 120)
endif()
