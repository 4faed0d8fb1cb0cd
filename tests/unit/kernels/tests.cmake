peft_add_test(kernels ${CMAKE_CURRENT_LIST_DIR}/gemm_test.cpp ${CMAKE_CURRENT_LIST_DIR}/rows_test.cpp LABELS unit)

# The same program on every instruction set; its first test proves that the forced one ran.
# Without optimisation and with sanitizers the largest products, a minute each, are left to the processor's own kernels.
set(peft_isa_skips)
if(PEFT_SANITIZE)
  set(peft_isa_skips "~gemm over more*")
endif()
foreach(isa scalar avx2 avx512)
  add_test(NAME isa_${isa} COMMAND test_kernels ${peft_isa_skips})
  set_tests_properties(isa_${isa} PROPERTIES ENVIRONMENT "PEFT_FORCE_ISA=${isa}" LABELS unit TIMEOUT 900
    SKIP_REGULAR_EXPRESSION "which this processor lacks")
endforeach()
# AVX-512's kernels in float under another name (those for activations in 8 bits are test_nf4's): the first test is enough.
foreach(isa avx512vnni avx512bf16)
  add_test(NAME isa_${isa} COMMAND test_kernels "the forced*")
  set_tests_properties(isa_${isa} PROPERTIES ENVIRONMENT "PEFT_FORCE_ISA=${isa}" LABELS unit
    SKIP_REGULAR_EXPRESSION "which this processor lacks")
endforeach()
