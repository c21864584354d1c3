# cmake --install, then configure, build and run the consumer against the installed tree only.
set(work ${BUILD}/consumer)
file(REMOVE_RECURSE ${work})
foreach(step
    "${CMAKE_COMMAND};--install;${BUILD};--prefix;${work}/prefix;--component;cpp"
    "${CMAKE_COMMAND};-G;${GENERATOR};-DCMAKE_MAKE_PROGRAM=${MAKE};-DCMAKE_CXX_COMPILER=${CXX};-DCMAKE_PREFIX_PATH=${work}/prefix;-DCMAKE_BUILD_TYPE=Release;-S;${SOURCE};-B;${work}/build"
    "${CMAKE_COMMAND};--build;${work}/build"
    "${work}/build/consumer")
  execute_process(COMMAND ${step} RESULT_VARIABLE result)
  if(result)
    message(FATAL_ERROR "failed (${result}): ${step}")
  endif()
endforeach()
