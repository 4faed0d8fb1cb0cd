# install + find_package(peft CONFIG) -> peft::peft; find_package(peft CONFIG COMPONENTS cuda) -> peft::cuda as well, made by the
# package file, since what is installed is the same with and without CUDA
include(CMakePackageConfigHelpers)
install(TARGETS peft EXPORT peftTargets)
install(DIRECTORY include/peft DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp" PATTERN "*.inc" PATTERN "*.cuh")
install(EXPORT peftTargets NAMESPACE peft:: DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/peft")
configure_package_config_file(cmake/peftConfig.cmake.in "${CMAKE_CURRENT_BINARY_DIR}/peftConfig.cmake"
  INSTALL_DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/peft")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/peftConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/peftConfig.cmake" "${CMAKE_CURRENT_BINARY_DIR}/peftConfigVersion.cmake"
  cmake/PeftCudaTarget.cmake
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/peft")

# pkg-config, relative to where it is installed
file(RELATIVE_PATH PEFT_PC_TO_PREFIX "/${CMAKE_INSTALL_DATADIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" PEFT_PC_TO_PREFIX "${PEFT_PC_TO_PREFIX}")
configure_file(cmake/peft.pc.in "${CMAKE_CURRENT_BINARY_DIR}/peft.pc" @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/peft.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
