peft_add_test(kernels ${CMAKE_CURRENT_LIST_DIR}/gemm_test.cpp ${CMAKE_CURRENT_LIST_DIR}/rows_test.cpp LABELS unit)

# The same program on every instruction set; its first test proves that the forced one ran.
foreach(isa scalar avx2 avx512)
  add_test(NAME isa_${isa} COMMAND test_kernels)
  set_tests_properties(isa_${isa} PROPERTIES ENVIRONMENT "PEFT_FORCE_ISA=${isa}" LABELS unit TIMEOUT 900
    SKIP_REGULAR_EXPRESSION "which this processor lacks")
endforeach()
