peft_add_test(ops ${CMAKE_CURRENT_LIST_DIR}/rows_test.cpp ${CMAKE_CURRENT_LIST_DIR}/attention_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/activation_test.cpp ${CMAKE_CURRENT_LIST_DIR}/layer_norm_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/dropout_test.cpp LABELS unit)
foreach(isa scalar avx2 avx512)
  add_test(NAME isa_ops_${isa} COMMAND test_ops)
  set_tests_properties(isa_ops_${isa} PROPERTIES ENVIRONMENT "PEFT_FORCE_ISA=${isa}" LABELS unit TIMEOUT 900
    SKIP_REGULAR_EXPRESSION "which this processor lacks")
endforeach()
