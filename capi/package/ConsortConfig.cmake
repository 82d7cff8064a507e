# find_package(Consort) gives the targets Consort::consort and Consort::consort_static.
# Where /lib is a link to /usr/lib, this may have been found there, and the header isn't beside the link.
get_filename_component(_consort_prefix "${CMAKE_CURRENT_LIST_DIR}" REALPATH)
get_filename_component(_consort_prefix "${_consort_prefix}/../../.." ABSOLUTE)

if(NOT TARGET Consort::consort)
  add_library(Consort::consort SHARED IMPORTED)
  set_target_properties(Consort::consort PROPERTIES
    IMPORTED_LOCATION "${_consort_prefix}/lib/libconsort.so.0"
    IMPORTED_SONAME "libconsort.so.0"
    INTERFACE_INCLUDE_DIRECTORIES "${_consort_prefix}/include")
endif()

if(NOT TARGET Consort::consort_static)
  add_library(Consort::consort_static STATIC IMPORTED)
  set_target_properties(Consort::consort_static PROPERTIES
    IMPORTED_LOCATION "${_consort_prefix}/lib/libconsort.a"
    INTERFACE_INCLUDE_DIRECTORIES "${_consort_prefix}/include"
    INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;pthread;m;dl;c")
endif()

unset(_consort_prefix)
