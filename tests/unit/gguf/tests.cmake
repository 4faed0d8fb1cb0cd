peft_add_test(gguf ${CMAKE_CURRENT_LIST_DIR}/gguf_blocks_test.cpp ${CMAKE_CURRENT_LIST_DIR}/gguf_linear_test.cpp LABELS unit)

# The same program on every instruction set.
foreach(isa scalar avx2 avx512)
  add_test(NAME gguf_${isa} COMMAND test_gguf)
  set_tests_properties(gguf_${isa} PROPERTIES ENVIRONMENT "PEFT_FORCE_ISA=${isa}" LABELS unit TIMEOUT 900
    SKIP_REGULAR_EXPRESSION "which this processor lacks")
endforeach()
