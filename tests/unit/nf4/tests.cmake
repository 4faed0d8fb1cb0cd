peft_add_test(nf4 ${CMAKE_CURRENT_LIST_DIR}/nf4_tensor_test.cpp ${CMAKE_CURRENT_LIST_DIR}/nf4_linear_test.cpp
  ${CMAKE_CURRENT_LIST_DIR}/bnb_4bit_test.cpp ${CMAKE_CURRENT_LIST_DIR}/int8_activations_test.cpp LABELS unit)

# The same program on every instruction set.
foreach(isa scalar avx2 avx512)
  add_test(NAME nf4_${isa} COMMAND test_nf4)
  set_tests_properties(nf4_${isa} PROPERTIES ENVIRONMENT "PEFT_FORCE_ISA=${isa}" LABELS unit TIMEOUT 900
    SKIP_REGULAR_EXPRESSION "which this processor lacks")
endforeach()
