# peft_target_defaults(target): warnings, checks of formats, sanitizers and exact arithmetic settings of our own programs and tests.
# Consumers get none of this: the INTERFACE target carries no flags.
function(peft_target_defaults target)
  target_compile_definitions(${target} PRIVATE PEFT_CHECK_FORMATS)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
  if(PEFT_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(PEFT_SANITIZE)
    # GCC documents that sanitizers make this warning fire falsely; here it does inside std::regex.
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized)
    endif()
    target_compile_options(${target} PRIVATE -fsanitize=${PEFT_SANITIZE} -fno-sanitize-recover=all
                           -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE -fsanitize=${PEFT_SANITIZE})
    target_compile_definitions(${target} PRIVATE PEFT_SANITIZED)  # see tests/support/sanitized.hpp
  endif()
endfunction()
