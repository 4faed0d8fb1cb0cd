# Each file must not compile, and the compiler's text must hold the given words.
function(peft_add_compile_fail name words)
  add_library(peft_compile_fail_${name} OBJECT EXCLUDE_FROM_ALL "${CMAKE_CURRENT_LIST_DIR}/${name}.cpp")
  target_link_libraries(peft_compile_fail_${name} PRIVATE peft::peft)
  target_compile_features(peft_compile_fail_${name} PRIVATE cxx_std_20)
  add_test(NAME compile_fail_${name}
    COMMAND "${CMAKE_COMMAND}" --build "${CMAKE_BINARY_DIR}" --target peft_compile_fail_${name})
  set_tests_properties(compile_fail_${name} PROPERTIES
    LABELS compile RESOURCE_LOCK build_tree PASS_REGULAR_EXPRESSION "${words}")
endfunction()

peft_add_compile_fail(training_over_forward_only
  "training over a base layer needs peft::PanelSource \\(fill_panel and bias\\) or peft::BackwardLinear")
peft_add_compile_fail(not_a_linear "LinearLike")
peft_add_compile_fail(column_major_view "views are row-major")
peft_add_compile_fail(double_over_float "kTakes")
