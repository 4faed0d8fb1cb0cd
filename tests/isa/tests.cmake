# The tests on processors that this one is not, emulated by qemu-user: ctest -C Qemu, or ctest --preset qemu. An x86-64
# without AVX gets the scalar kernels, a Haswell those of AVX2 with FMA and F16C, one that lacks F16C alone the scalar
# ones again. Emulation takes up to a hundred times longer, so the largest products are left to the native tests.
find_program(PEFT_QEMU qemu-x86_64)
if(NOT PEFT_QEMU)
  return()
endif()
# A child that was forked while other threads ran may start none under qemu-user 7.2: qemu_plugin_vcpu_init_hook fails
# an assertion of qemu's own.
set(peft_qemu_skips_core "~a forked child*")
set(peft_qemu_skips_kernels "~gemm with low-rank*" "~gemm over more*")

# peft_qemu_test(name cpu isa rooms...)
function(peft_qemu_test name cpu isa)
  foreach(room IN LISTS ARGN)
    add_test(NAME ${name}_${room} CONFIGURATIONS Qemu
      COMMAND "${PEFT_QEMU}" -cpu "${cpu}" $<TARGET_FILE:test_${room}> ${peft_qemu_skips_${room}})
    set_tests_properties(${name}_${room} PROPERTIES LABELS qemu TIMEOUT 600
      ENVIRONMENT "PEFT_TEST_EXPECTED_ISA=${isa};PEFT_FORCE_ISA=;PEFT_NUM_THREADS=2")
  endforeach()
endfunction()

peft_qemu_test(qemu_nehalem Nehalem scalar core kernels ops methods)
peft_qemu_test(qemu_haswell Haswell avx2 core kernels ops methods)
add_test(NAME qemu_without_f16c CONFIGURATIONS Qemu
  COMMAND "${PEFT_QEMU}" -cpu Haswell,-f16c $<TARGET_FILE:test_kernels> "the forced*,conversions*")
set_tests_properties(qemu_without_f16c PROPERTIES LABELS qemu
  ENVIRONMENT "PEFT_TEST_EXPECTED_ISA=scalar;PEFT_FORCE_ISA=")
