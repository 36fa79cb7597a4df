# Compiler settings and the three verbs the folders use:
#   lazyblob_library(NAME SRCS ... DEPS ...)
#   lazyblob_test(NAME SRCS ... DEPS ... [LABELS ...] [TIMEOUT seconds] [SERIAL])   SERIAL: beside no other test
#   lazyblob_fuzzer(NAME SRCS ... DEPS ... CORPUS dir)      (clang only)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()

set(LAZYBLOB_SANITIZE "" CACHE STRING "empty, 'address' (with undefined) or 'thread'")
set(LAZYBLOB_ABSL_PREFIX "" CACHE PATH "Abseil and GoogleTest built with the same sanitizer (needed by 'thread')")
option(LAZYBLOB_ALL_TESTS "let ctest also build and run the sanitizer builds and the fuzz targets" OFF)
option(LAZYBLOB_FUZZ "build the libFuzzer targets (clang)" OFF)
option(LAZYBLOB_BENCH "build the benchmarks" OFF)

add_library(lazyblob_options INTERFACE)
target_include_directories(lazyblob_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(lazyblob_options INTERFACE
  -Wall -Wextra -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Werror -fstack-protector-strong)
target_compile_definitions(lazyblob_options INTERFACE _FILE_OFFSET_BITS=64)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(lazyblob_options INTERFACE -Wthread-safety -Werror=thread-safety)
endif()
if(LAZYBLOB_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(LAZYBLOB_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
endif()

# What makes attacks on the programs harder (tests/builds/check_hardening.py), and objects the same wherever they are built
# (tests/builds/reproducible.sh). Tests do without: they compile faster.
add_library(lazyblob_hardening INTERFACE)
if(NOT LAZYBLOB_SANITIZE)
  include(CheckCXXCompilerFlag)
  check_cxx_compiler_flag(-fcf-protection=full LAZYBLOB_CF_PROTECTION)  # x86-64
  target_compile_options(lazyblob_hardening INTERFACE
    -fstack-clash-protection $<$<BOOL:${LAZYBLOB_CF_PROTECTION}>:-fcf-protection=full>
    $<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE> $<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=3>
    -ffile-prefix-map=${PROJECT_SOURCE_DIR}= -ffile-prefix-map=${PROJECT_BINARY_DIR}=/build)
  target_link_options(lazyblob_hardening INTERFACE -pie -Wl,-z,relro,-z,now,-z,noexecstack,-z,separate-code)
endif()
if(LAZYBLOB_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenSSL REQUIRED)
if(LAZYBLOB_ABSL_PREFIX)
  find_package(absl REQUIRED PATHS ${LAZYBLOB_ABSL_PREFIX} NO_DEFAULT_PATH)
else()
  find_package(absl REQUIRED)
endif()
find_package(nlohmann_json REQUIRED)
if(LAZYBLOB_ABSL_PREFIX)
  find_package(GTest REQUIRED PATHS ${LAZYBLOB_ABSL_PREFIX} NO_DEFAULT_PATH)
else()
  find_package(GTest REQUIRED)
endif()
pkg_check_modules(CURL REQUIRED IMPORTED_TARGET libcurl)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(ZLIB REQUIRED IMPORTED_TARGET zlib)
pkg_check_modules(ISAL REQUIRED IMPORTED_TARGET libisal)
pkg_check_modules(FUSE3 REQUIRED IMPORTED_TARGET fuse3)
pkg_check_modules(SQLITE REQUIRED IMPORTED_TARGET sqlite3)
pkg_check_modules(SECCOMP REQUIRED IMPORTED_TARGET libseccomp)

# Every folder may use these: vocabulary types, not features.
target_link_libraries(lazyblob_options INTERFACE
  absl::status absl::statusor absl::strings absl::str_format absl::synchronization absl::time absl::span
  absl::flat_hash_map absl::flat_hash_set absl::any_invocable absl::cleanup Threads::Threads)

function(lazyblob_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SRCS})
  target_link_libraries(${name} PUBLIC lazyblob_options ${ARG_DEPS} PRIVATE lazyblob_hardening)
  add_dependencies(lazyblob_libraries ${name})
endfunction()

# Targets that build a kind of thing: all libraries, all unit tests, the unit tests of one folder, all fuzz targets.
add_custom_target(lazyblob_libraries)
add_custom_target(lazyblob_tests)
add_custom_target(lazyblob_fuzzers)
foreach(folder support base oci containerd registry layer contentstore fuse exporter snapshotter contentservice daemon)
  add_custom_target(tests_${folder})
  add_dependencies(lazyblob_tests tests_${folder})
endforeach()

# Every test carries the name of its folder as a label, and is built by the target tests_<folder>.
function(lazyblob_test name)
  cmake_parse_arguments(ARG "SERIAL" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE lazyblob_options ${ARG_DEPS} GTest::gmock GTest::gtest GTest::gtest_main)
  if(NOT LAZYBLOB_SANITIZE)  # what is tested is optimised; tests themselves compile twice as fast without
    target_compile_options(${name} PRIVATE -O0)
  endif()
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS};${folder}")
  if(ARG_SERIAL)
    set_tests_properties(${name} PROPERTIES RUN_SERIAL ON)
  endif()
  add_dependencies(tests_${folder} ${name})
endfunction()

function(lazyblob_fuzzer name)
  cmake_parse_arguments(ARG "" "CORPUS" "SRCS;DEPS" ${ARGN})
  if(NOT LAZYBLOB_FUZZ)
    return()
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE lazyblob_options ${ARG_DEPS})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  add_dependencies(lazyblob_fuzzers ${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
  add_test(NAME ${name}
    COMMAND ${PROJECT_SOURCE_DIR}/tests/fuzz/run_short.sh $<TARGET_FILE:${name}> ${ARG_CORPUS})
  set_tests_properties(${name} PROPERTIES TIMEOUT 120 LABELS fuzz)
endfunction()
